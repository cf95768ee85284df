"""`hf:PATH`: a data set of the Hugging Face library `datasets` that is on this machine.

PATH is what `save_to_disk` wrote, or a folder that `load_dataset` reads, of Parquet files for
example; or the name of a set that is in the library's cache. Behind it may stand split=NAME,
name=CONFIGURATION, image=COLUMN and label=COLUMN. Nothing is fetched, and no code of a set is run.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from swav_trainer import decoding, files, sources
from swav_trainer.config import Config
from swav_trainer.data import UNLABELLED, Dataset, classes_of, image_parts
from swav_trainer.errors import TrainerError, did_you_mean, printable
from swav_trainer.images import BadFiles, Image

OPTIONS = ("split", "name", "image", "label")
SAVED = ("state.json", "dataset_dict.json")  # in a folder of save_to_disk


def load(config: Config, place: str) -> Dataset:
    """Open the data set and split its images.

    Raises:
        TrainerError: the library, the set, its split or its image column is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise TrainerError(
            f"hf: needs the library datasets: pip install datasets ({error})"
        ) from error
    name, values = sources.options(place)
    for key in values:
        if key not in OPTIONS:
            raise TrainerError(f"hf: knows no {key}={did_you_mean(key, OPTIONS)}")
    found = _split_of(_open(datasets, name, values.get("name")), name, values.get("split"))
    image = _column(found, name, values.get("image"), datasets.Image)
    if image is None:
        raise TrainerError(
            f"hf:{name} has no column of images among {', '.join(found.column_names)}: say which "
            "one it is by image=COLUMN"
        )
    label = _column(found, name, values.get("label"), datasets.ClassLabel)
    plain = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    source = Items(plain, image, printable(Path(name).name))
    numbers = np.full(len(found), UNLABELLED) if label is None else _numbers(found, label)
    names = None if label is None else getattr(found.features[label], "names", None)
    labels, classes = classes_of(source, numbers, names)
    parts = image_parts(source, labels, BadFiles(len(found)), config)
    text = f"{Path(name).name} {values} {len(found)}".encode()
    fingerprint = hashlib.sha256(text + numbers.tobytes()).hexdigest()
    return Dataset(source.name, classes, *parts, fingerprint)


class Items:
    """Rows of a data set.

    Args:
        found: the set, with its images as bytes or paths.
        column: of the images.
        name: of the set.
    """

    def __init__(self, found: Any, column: str, name: str) -> None:
        self.found = found
        self.column = column
        self.name = name

    def path(self, row: int) -> Path:
        """Name and number."""
        return Path(self.name, str(row))

    def decode(self, row: int) -> Image | None:
        """Return an image, or None if it is bad."""
        item = self.found[row][self.column]
        if item is None:
            return None
        if item["bytes"] is None:
            return files.decode(Path(item["path"]))
        if len(item["bytes"]) > decoding.MOST_BYTES:
            return None
        return decoding.decode(item["bytes"])


def _open(datasets: Any, name: str, configuration: str | None) -> Any:
    """Return a set, or several by their splits."""
    try:
        if any(os.path.exists(os.path.join(name, file)) for file in SAVED):
            return datasets.load_from_disk(name)
        here = datasets.DownloadConfig(local_files_only=True)
        return datasets.load_dataset(name, configuration, download_config=here)
    except Exception as error:  # of many kinds, those of Arrow and of the hub among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainerError(
            f"hf:{printable(name)} cannot be opened: {reason}; it wants a folder on this machine, "
            "or a set that is in the library's cache"
        ) from error


def _split_of(found: Any, name: str, split: str | None) -> Any:
    if not isinstance(found, dict):
        if split is not None:
            raise TrainerError(f"hf:{printable(name)} has no splits: leave out split={split}")
        return found
    chosen = split or (next(iter(found)) if len(found) == 1 else "train")
    if chosen not in found:
        raise TrainerError(
            f"hf:{printable(name)} has no split {chosen!r}: add split= one of {', '.join(found)}"
        )
    return found[chosen]


def _column(found: Any, name: str, wanted: str | None, kind: type) -> str | None:
    """Return the column that the user names, or the first of a kind."""
    if wanted is not None and wanted not in found.features:
        raise TrainerError(
            f"hf:{printable(name)} has no column {wanted!r}: choose from "
            f"{', '.join(found.features)}"
        )
    columns = [column for column, feature in found.features.items() if isinstance(feature, kind)]
    return wanted or next(iter(columns), None)


def _numbers(found: Any, label: str) -> np.ndarray:
    """Return each row's class, [N]."""
    if not str(getattr(found.features[label], "dtype", "")).startswith(("int", "uint")):
        raise TrainerError(f"label={label} must be a column of whole numbers")
    values = found.select_columns([label])[:][label]
    return np.array([UNLABELLED if value is None else value for value in values], np.int64)
