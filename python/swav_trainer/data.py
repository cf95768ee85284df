"""Images and labels of any source, split into two parts."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swav_trainer import sources
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable
from swav_trainer.images import BadFiles, Images, Source

UNLABELLED = -1  # the label of an image that has none: none of its data set has one then


@dataclass(frozen=True)
class Part:
    """Images with labels: a tensor [N, C, H, W] of values from 0 to 1, or decoded when wanted."""

    images: Tensor | Images
    labels: Tensor  # [N], numbers of classes, or all UNLABELLED
    rows: Tensor | None = None  # places in the whole set of images that have no names

    def __len__(self) -> int:
        return len(self.labels)

    def readable(self, workers: int) -> "Part":
        """Return the images that can be read, with their labels; looks into every file."""
        if isinstance(self.images, Tensor):
            return self
        return self.take(torch.tensor(self.images.readable(workers), dtype=torch.int64))

    def take(self, places: Tensor) -> "Part":
        """Return some of the images, with their labels."""
        if isinstance(self.images, Tensor):
            rows = None if self.rows is None else self.rows[places]
            return Part(self.images[places], self.labels[places], rows)
        return Part(self.images.take(places.numpy()), self.labels[places])


@dataclass(frozen=True)
class Dataset:
    """Training images, whose labels only the evaluation uses, and held-out ones."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part
    fingerprint: str  # of names and labels: the same as long as the split is

    @property
    def has_labels(self) -> bool:
        """False if there are no classes to tell apart."""
        return len(self.classes) > 1

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        images = self.train.images
        return int(images.shape[1]) if isinstance(images, Tensor) else 3

    @property
    def bad_files(self) -> BadFiles | None:
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
    kind, place = sources.parse(config.data)
    module = "packaged" if kind in sources.IN_MEMORY else kind
    return importlib.import_module(f"{sources.__name__}.{module}").load(config, place)


def classes_of(
    source: Source, numbers: np.ndarray, names: Sequence[str] | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels [N], counted from 0 without a gap, and the classes' names.

    Where there are not two classes no image has a label, and the one class is that of UNLABELLED,
    which counts from the end.

    Args:
        source: the images.
        numbers: of each image's class, [N], or UNLABELLED.
        names: of the classes by their numbers; without one for each they are called by the number.

    Raises:
        TrainerError: some images have a label and others none.
    """
    (missing,) = np.nonzero(numbers == UNLABELLED)
    if 0 < len(missing) < len(numbers):
        raise TrainerError(
            f"{len(missing)} of {len(numbers)} images have no label, such as "
            f"{printable(source.path(int(missing[0])))}: give all of them one, or none"
        )
    present, labels = np.unique(numbers, return_inverse=True)
    if len(present) < 2:
        return torch.full((len(numbers),), UNLABELLED), ("unlabelled",)
    if names is None or present[0] < 0 or present[-1] >= len(names):
        return torch.from_numpy(labels), tuple(map(str, present))
    return torch.from_numpy(labels), tuple(printable(str(names[number])) for number in present)


def image_parts(source: Source, labels: Tensor, bad: BadFiles, config: Config) -> tuple[Part, Part]:
    """Split images with labels [N] into those to learn from and those that are held out."""
    train, test = (
        Part(Images(source, rows.numpy(), bad), labels[rows]) for rows in split(labels, config)
    )
    return train, test


def split(labels: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Hold out a share of each class; the rows of both parts, shuffled."""
    rng = np.random.default_rng(config.seed)
    train, test = [], []
    for label in labels.unique():
        rows = rng.permutation(torch.nonzero(labels == label).flatten().numpy())
        count = round(config.holdout * len(rows))
        test.append(rows[:count])
        train.append(rows[count:])
    parts = [rng.permutation(np.concatenate(rows)) for rows in (train, test)]
    if min(map(len, parts)) == 0:
        raise TrainerError(
            f"{len(labels)} images in {len(labels.unique())} classes are too few to hold out a "
            f"share of {config.holdout}: add images or change --holdout"
        )
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])
