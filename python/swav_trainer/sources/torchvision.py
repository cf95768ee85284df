"""`torchvision:CLASS,root=PATH`: a data set of torchvision that is on this machine."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from swav_trainer import decoding, sources
from swav_trainer.config import Config
from swav_trainer.data import Dataset, classes_of, image_parts
from swav_trainer.errors import TrainerError, did_you_mean, printable
from swav_trainer.images import BadFiles, Image

WORDS = {"true": True, "false": False, "none": None}  # values of keywords


def load(config: Config, place: str) -> Dataset:
    """Make the data set and split its images.

    Raises:
        TrainerError: torchvision does not import, or has no such set, or its files are missing.
    """
    name, values = sources.options(place)
    found = _make(name, {key: _value(text) for key, text in values.items()})
    source, numbers = Items(found, name), _labels(name, found)
    names = getattr(found, "classes", None)
    labels, classes = classes_of(
        source, numbers, names if isinstance(names, list | tuple) else None
    )
    parts = image_parts(source, labels, BadFiles(len(found)), config)
    fingerprint = hashlib.sha256(place.encode() + numbers.tobytes()).hexdigest()
    return Dataset(printable(name), classes, *parts, fingerprint)


class Items:
    """The items of a data set, of which the first part is an image.

    Args:
        found: the data set; item i is (image, label, ...).
        name: its name.
    """

    def __init__(self, found: Any, name: str) -> None:
        self.found = found
        self.name = name

    def path(self, row: int) -> Path:
        """Name and number."""
        return Path(self.name, str(row))

    def decode(self, row: int) -> Image | None:
        """Return the image; None if the data set fails to give it, or gives something else."""
        try:
            return _pixels(self.found[row][0])
        except Exception:  # whatever its code and its decoders raise
            return None


def _make(name: str, keywords: dict[str, Any]) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # a build for another torch fails as it registers
        raise TrainerError(
            f"torchvision: does not import here: {str(error).splitlines()[0]}; it must be of the "
            "build of torch: pip install torchvision"
        ) from error
    kind = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and hasattr(kind, "__getitem__")):
        known = getattr(datasets, "__all__", [])
        raise TrainerError(
            f"torchvision has no data set {printable(name)!r}{did_you_mean(name, known)}"
        )
    if "download" in inspect.signature(kind).parameters:
        keywords = {"download": False, **keywords}
    try:
        return kind(**keywords)
    except Exception as error:  # each set has its own ways to say that files are missing
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainerError(
            f"torchvision:{name} cannot be made with {keywords}: {reason}; where files are "
            "missing, name their root=PATH, or fetch them first by "
            f"torchvision.datasets.{name}(..., download=True)"
        ) from error


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    return int(text) if text.isascii() and text.isdigit() else text


def _labels(name: str, found: Any) -> np.ndarray:
    """Return the number of each item's class, [N]."""
    for attribute in ("targets", "labels", "_labels"):
        numbers = getattr(found, attribute, None)
        if numbers is not None and len(numbers) == len(found):
            break
    else:
        numbers = [_label_of(name, found, row) for row in range(len(found))]
    numbers = np.asarray(numbers)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu":
        raise TrainerError(
            f"the items of torchvision:{name} must be images with a whole number, got labels of "
            f"{numbers.dtype} {list(numbers.shape)}"
        )
    return numbers.astype(np.int64)


def _label_of(name: str, found: Any, row: int) -> Any:
    try:
        return found[row][1]
    except Exception as error:
        raise TrainerError(
            f"torchvision:{name} gives no label of item {row}: {type(error).__name__}: {error}"
        ) from error


def _pixels(image: Any) -> Image | None:
    """A Pillow image, or an array or tensor of bytes, [H, W] or [H, W, 1 or 3], as RGB."""
    if hasattr(image, "convert"):
        width, height = image.size
        if width * height > decoding.MOST_PIXELS:
            return None
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        return None
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
