"""`folder:PATH`: a folder of image files for each class."""

import hashlib
import os
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from swav_trainer.config import Config
from swav_trainer.data import Dataset, image_parts
from swav_trainer.errors import TrainerError, printable
from swav_trainer.files import ImageFiles
from swav_trainer.images import SUFFIXES, BadFiles


def load(config: Config, place: str) -> Dataset:
    """Find the files and split them."""
    folder = Path(place)
    paths, labels, classes = _scan(folder)
    parts = image_parts(ImageFiles(paths), labels, BadFiles(len(paths)), config)
    names = b"\0".join(os.fsencode(path.relative_to(folder)) for path in paths)
    fingerprint = hashlib.sha256(names).hexdigest()
    return Dataset(printable(folder.name), classes, *parts, fingerprint)


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
            f"{', '.join(SUFFIXES)} files"
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
        if Path(name).suffix.lower() in SUFFIXES
    ]


def _refuse(error: OSError) -> NoReturn:
    raise TrainerError(f"cannot read {printable(error.filename)}: {error.strerror}") from error
