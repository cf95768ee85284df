"""Images that are decoded when they are asked for, and what to do with those that are bad."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from swav_trainer.errors import TrainerError, printable

Image = np.ndarray  # RGB [H, W, 3] uint8

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_BAD = 0.01  # share of the images that may be unreadable


class Source(Protocol):
    """All images of a data set, numbered from 0; it can be pickled, for loader processes."""

    def path(self, row: int) -> Path:
        """Where an image lies, to name it by."""

    def decode(self, row: int) -> Image | None:
        """Return an image, or None if it is bad."""


class BadFiles:
    """The files of a data set that cannot be read: counted, named, and refused if too many.

    Args:
        num_files: of the whole data set.
    """

    def __init__(self, num_files: int) -> None:
        self.num_files = num_files
        self.paths: set[Path] = set()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock behind."""
        return {"num_files": self.num_files, "paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a lock of its own."""
        self.__init__(state["num_files"])
        self.paths = state["paths"]

    def add(self, path: Path) -> None:
        """Count a file.

        Raises:
            TrainerError: more than one file in a hundred is bad.
        """
        with self._lock:
            self.paths.add(path)
            if len(self.paths) > MOST_BAD * self.num_files:
                raise TrainerError(
                    f"{len(self.paths)} of {self.num_files} image files cannot be read, more than "
                    f"{MOST_BAD:.0%}: {self.names()}; mend or remove them"
                )

    def names(self, most: int = 5) -> str:
        """Name the bad files, a few of them if they are many."""
        names = [printable(path) for path in sorted(self.paths)]
        return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


class Images:
    """Images of one part of a data set.

    Args:
        source: all images.
        rows: [N], those of the part.
        bad: takes in those that cannot be read.
    """

    def __init__(self, source: Source, rows: np.ndarray, bad: BadFiles) -> None:
        self.source = source
        self.rows = rows
        self.bad = bad

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def paths(self) -> list[Path]:
        """Where each image lies."""
        return [self.source.path(row) for row in self.rows.tolist()]

    def take(self, places: Sequence[int] | np.ndarray) -> "Images":
        """Return some of the images."""
        return Images(self.source, self.rows[places], self.bad)

    def read(self, index: int) -> Image:
        """Return image `index`, or the next one that can be read.

        Raises:
            TrainerError: too many are bad.
        """
        for offset in range(len(self)):
            row = int(self.rows[(index + offset) % len(self)])
            image = self.source.decode(row)
            if image is not None:
                return image
            self.bad.add(self.source.path(row))
        raise TrainerError(f"none of the {len(self)} image files can be read")

    def readable(self, workers: int) -> list[int]:
        """Decode every image; the places of those that can be read, in order."""

        def is_good(row: int) -> bool:
            if self.source.decode(row) is not None:
                return True
            self.bad.add(self.source.path(row))
            return False

        with ThreadPoolExecutor(workers or None) as pool:
            return [i for i, good in enumerate(pool.map(is_good, self.rows.tolist())) if good]
