"""`webdataset:PATTERN`: images in tar files, with their labels beside them, as WebDataset packs.

Members `name.jpg` and `name.cls` that follow each other are an image and the number of its class.
The library of that name reads shards as streams; a run that goes on where it stopped, with the same
crops, needs each image by itself, which the index of `shards` gives.
"""

import glob
import hashlib
import itertools
import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from swav_trainer import shards, tar
from swav_trainer.config import Config
from swav_trainer.data import UNLABELLED, Dataset, classes_of, image_parts
from swav_trainer.errors import TrainerError, printable
from swav_trainer.images import SUFFIXES, BadFiles

MOST_SHARDS = 100_000
MOST_USELESS = 10_000  # members that are no images, though they are called so
LABEL = ".cls"
NAMED = re.compile(r"((?:.*/)?[^/.]+)(\.[^/]+)", re.DOTALL)  # an image's name and its ending


def load(config: Config, place: str) -> Dataset:
    """Index the shards and split their images.

    Raises:
        TrainerError: there is none, one is no tar file, or labels are missing or no numbers.
    """
    index = Index(expand(place))
    labels, classes = index.labels()
    bad = BadFiles(len(labels) + len(index.useless))
    for path in index.useless:
        bad.add(path)
    parts = image_parts(index.source, labels, bad, config)
    name = re.sub(r"[*?{}\[\]]+", "_", printable(Path(place).parent.name)) or "webdataset"
    return Dataset(name, classes, *parts, index.names.hexdigest())


class Index:
    """What shards hold.

    Args:
        paths: the shards.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.source = shards.Shards(paths)
        self.useless: list[Path] = []  # links, names that lead elsewhere, the rest of a shard
        self.names = hashlib.sha256()
        self._labels = array("q")
        for number, path in enumerate(self.source.paths):
            with shards.opened(path) as descriptor:
                self._read(number, path, descriptor)

    def labels(self) -> tuple[Tensor, tuple[str, ...]]:
        """Return the class of each image, counted from 0, and the classes' names.

        Raises:
            TrainerError: there is no image, or only some have a label.
        """
        if not self._labels:
            raise TrainerError(
                f"no images in {printable(self.source.paths[0])} or a shard behind it: members "
                f"must end in {', '.join(SUFFIXES)}"
            )
        return classes_of(self.source, np.array(self._labels))

    def _read(self, number: int, path: str, descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TrainerError(f"{printable(path)} is no file: webdataset wants tar files")
        key, label, since = "", UNLABELLED, 0  # of the image at hand, which began with row `since`
        seen = None
        try:
            for seen in tar.members(descriptor):
                match = NAMED.fullmatch(seen.name)
                if match is None:
                    continue
                if match[1] != key:
                    key, label, since = match[1], UNLABELLED, len(self._labels)
                if match[2].lower() in SUFFIXES:
                    self._take(number, path, seen, label)
                elif match[2] == LABEL and seen.is_file and label == UNLABELLED:
                    label = _label(path, seen, descriptor)
                    for row in range(since, len(self._labels)):
                        self._labels[row] = label
        except tar.DamagedError as error:
            if seen is None:
                packed = os.pread(descriptor, 2, 0) == b"\x1f\x8b"
                hint = "unpack it with gunzip" if packed else "webdataset wants tar files"
                raise TrainerError(f"{printable(path)} is no tar file ({error}): {hint}") from error
            self._skip(Path(f"{path} ({error})"))

    def _take(self, number: int, path: str, member: tar.Member, label: int) -> None:
        name = PurePosixPath(member.name)
        if not member.is_file or name.is_absolute() or ".." in name.parts:
            self._skip(Path(f"{path}/{member.name}"))
            return
        self.source.add(number, member)
        self._labels.append(label)
        self.names.update(os.fsencode(member.name) + b"\0")

    def _skip(self, path: Path) -> None:
        self.useless.append(path)
        if len(self.useless) > MOST_USELESS:
            raise TrainerError(
                f"more than {MOST_USELESS} members are links or have names that lead elsewhere, "
                f"such as {printable(path)}: look where these shards come from"
            )


def _label(path: str, member: tar.Member, descriptor: int) -> int:
    """Return the number in a member."""
    text = os.pread(descriptor, min(member.size, 64), member.start).strip()
    if not re.fullmatch(rb"[0-9]{1,18}", text):
        shown = printable(f"{path}/{member.name}")
        raise TrainerError(f"{shown} must hold the number of a class, got {text!r}")
    return int(text)


def expand(pattern: str) -> list[Path]:
    """Return the files of a pattern with {000..123}, {a,b}, *, ? and [], in their order.

    Raises:
        TrainerError: there is none, or too many.
    """
    names = list(itertools.islice(_without_braces(pattern), MOST_SHARDS + 1))
    if len(names) > MOST_SHARDS:
        raise TrainerError(f"{printable(pattern)} names more than {MOST_SHARDS} shards")
    found: list[str] = []
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches:
            raise TrainerError(f"no file {printable(name)}: webdataset wants tar files on a disk")
        found += matches
    return [Path(name) for name in dict.fromkeys(found)]


def _without_braces(name: str) -> Iterator[str]:
    """Yield a name for each choice of what stands in braces, the inner ones first."""
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        yield name
        return
    numbers = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", match[1])
    choices: Iterable[str] = match[1].split(",")
    if numbers is not None:
        first, last = map(int, numbers.groups())
        choices = (str(number).zfill(len(numbers[1])) for number in range(first, last + 1))
    for choice in choices:
        yield from _without_braces(name[: match.start()] + choice + name[match.end() :])
