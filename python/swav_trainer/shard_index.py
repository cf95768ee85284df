"""The index of a folder of shards: a pickle of torch's, read without running code it might hold."""

import dataclasses
import enum
import math
import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import Metadata, TensorStorageMetadata

from swav_trainer.errors import TrainerError, printable

MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")


def read(file: Path) -> dict[str, TensorStorageMetadata]:
    """Return size and type of each tensor by its name.

    Raises:
        TrainerError: it is no index, one of something other than tensors, or one of more than the
            files beside it hold.
    """
    shown = printable(file)
    try:
        with file.open("rb") as opened:
            index = _Unpickler(opened).load()
    except Exception as error:  # any bytes may come
        raise TrainerError(f"{shown} is refused: {type(error).__name__}: {error}") from error
    if not isinstance(index, Metadata):
        raise TrainerError(f"{shown} holds {type(index).__name__}, not an index of tensors")
    kinds = index.state_dict_metadata
    other = [name for name, kind in kinds.items() if not isinstance(kind, TensorStorageMetadata)]
    if other:
        raise TrainerError(f"{shown} names {printable(other[0])}, which is no tensor")
    _check_files(index, file.parent, shown)
    return kinds


def _check_files(index: Metadata, folder: Path, shown: str) -> None:
    """Refuse an index that leads out of its folder, or would have memory for what is not there."""
    names = {str(place.relative_path) for place in (index.storage_data or {}).values()}
    strangers = [name for name in names if Path(name).name != name or name.startswith(".")]
    if strangers:
        raise TrainerError(
            f"{shown} is refused: it names {printable(strangers[0])}, which is no file beside it"
        )
    held = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    wanted = sum(
        max(0, math.prod(kind.size)) * kind.properties.dtype.itemsize
        for kind in index.state_dict_metadata.values()
    )
    if wanted > held:
        raise TrainerError(
            f"{shown} is refused: it tells of {wanted} bytes of tensors, and its files hold {held}"
        )


class _Unpickler(pickle.Unpickler):
    """Makes records, sizes, types and paths only."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("torch", "pathlib"):
            found = super().find_class(module, name)
            if found in (torch.Size, torch.serialization._get_layout) or _is_plain(found):
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _is_plain(found: Any) -> bool:
    if not isinstance(found, type):
        return isinstance(found, torch.dtype)
    is_record = dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)
    return issubclass(found, pathlib.PurePath) or (is_record and found.__module__ in MODULES)
