"""`folder:PATH`: image files, in a folder for each class or without classes."""

import hashlib
import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from swav_trainer.config import Config
from swav_trainer.data import UNLABELLED, Dataset, classes_of, image_parts
from swav_trainer.errors import TrainerError, printable
from swav_trainer.files import ImageFiles
from swav_trainer.images import SUFFIXES, BadFiles


def load(config: Config, place: str) -> Dataset:
    """Find the files and split them."""
    folder = Path(place)
    paths, numbers, names = _scan(folder)
    source = ImageFiles(paths)
    labels, classes = classes_of(source, numbers, names)
    parts = image_parts(source, labels, BadFiles(len(paths)), config)
    relative = b"\0".join(os.fsencode(path.relative_to(folder)) for path in paths)
    fingerprint = hashlib.sha256(relative).hexdigest()
    return Dataset(printable(folder.name), classes, *parts, fingerprint)


def _scan(folder: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """Return the files of all class folders, their numbers and the folders' names.

    Where fewer than two folders hold images, these are no classes: all images below are taken.
    """
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
            classes.append(class_folder.name)
    if len(classes) < 2:
        paths = sorted(_images(folder))
        labels = [UNLABELLED] * len(paths)
    if not paths:
        raise TrainerError(
            f"no images in {shown}: it wants {', '.join(SUFFIXES)} files, in a folder for each "
            "class if there are classes"
        )
    return paths, np.array(labels), classes


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
        if Path(name).suffix.lower() in SUFFIXES
    ]


def _refuse(error: OSError) -> NoReturn:
    raise TrainerError(f"cannot read {printable(error.filename)}: {error.strerror}") from error
