"""A folder a checkpoint: each process writes its shards, the main one the rest and a manifest.

The manifest holds the SHA-256 of every other file. The checkpoint before it stays beside it, so
that one always can be read, by any number of processes.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from swav_trainer import checkpoint, durable, ranks, shard_index
from swav_trainer.errors import TrainerError, printable

MANIFEST, STATE, INDEX = "manifest.json", "state.json", ".metadata"  # torch names the index
BLOCK = 2**20  # bytes read at a time


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash at any moment leaves it or the one before, never half of one.

    All processes call it with their shards; whole tensors and state are those of the main one.
    """
    temporary = path.with_name(path.name + ".tmp")
    ranks.tell(lambda: _clear(temporary, path, anew=True))
    try:
        _alone_or_together(
            dcp.save,
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=dcp.FileSystemWriter(temporary),
            planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
        )
    except dcp.CheckpointException as error:
        ranks.tell(lambda: _clear(temporary, path))
        raise _cannot_write(path, _first(error)) from error
    ranks.tell(lambda: _finish(temporary, path, state))


def _alone_or_together(action: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Save or load in all processes; torch warns of one alone even if it is told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        action(*arguments, **options, no_dist=ranks.count() == 1)


def _clear(temporary: Path, path: Path, anew: bool = False) -> None:
    """Remove what a save that failed has left; make the folder, where its place still is."""
    try:
        _remove(temporary)
        if anew:
            temporary.mkdir()  # torch would make a run's folder again that is gone, disk and all
    except OSError as error:
        raise _cannot_write(path, error) from error


def _finish(temporary: Path, path: Path, state: dict[str, Any]) -> None:
    """Add state and manifest to the shards, and let the folder take its place."""
    try:
        _write(temporary / STATE, state)
        sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        _write(temporary / MANIFEST, sums)
        durable.flush(temporary)
        if path.exists():
            _remove(path.with_name(checkpoint.PREVIOUS_SHARDS))
            path.replace(path.with_name(checkpoint.PREVIOUS_SHARDS))
        temporary.replace(path)
        durable.flush(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(path, error) from error


def _write(file: Path, content: dict[str, Any]) -> None:
    with file.open("w", encoding="utf-8") as opened:
        json.dump(content, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _first(error: dcp.CheckpointException) -> BaseException:
    """Return what went wrong in the first of the processes in which something did."""
    return next(iter(error.failures.values()))[0]


def _cannot_write(path: Path, error: BaseException) -> TrainerError:
    if not isinstance(error, OSError):  # torch's writer tells where it was, not what happened
        first = str(error).strip().partition("\n")[0]
        error = OSError(0, f"the disk took a part of it only, or none ({first})")
    return checkpoint.before_is_intact(durable.cannot_write(path, error, "the checkpoint"))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def load(
    path: Path, places: dict[str, Tensor], set_aside: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read a checkpoint, or the one before it; all processes call it.

    Args:
        path: the newest one.
        places: parameters by the names that a checkpoint gives them and their moments; tensors
            come in shards where these are shards, and else whole, on the CPU.
        set_aside: rename a corrupt one, so that no later save takes it for one that is good.

    Returns:
        Tensors, state, and what was wrong with the newest one, or "".

    Raises:
        TrainerError: there is none, or none that can be read.
    """
    previous = path.with_name(checkpoint.PREVIOUS_SHARDS)
    corrupt = path.with_name(checkpoint.CORRUPT_SHARDS) if set_aside else None
    (folder, state), problem = ranks.tell(
        lambda: checkpoint.newest(path, previous, corrupt, _verified)
    )
    kinds = shard_index.read(folder / INDEX)
    tensors = {name: _blank(name, kind, places) for name, kind in kinds.items()}
    try:
        _alone_or_together(dcp.load, tensors, storage_reader=dcp.FileSystemReader(folder))
    except dcp.CheckpointException as error:
        shown = printable(folder)
        raise TrainerError(f"cannot read the checkpoint {shown}: {_first(error)}") from error
    return tensors, state, problem


def _verified(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the state in it, if all its files are as they were written."""
    shown = printable(folder)
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        present = {file.name for file in folder.iterdir()} - {MANIFEST}
        if set(sums) != present:  # which also keeps names with ".." out
            names = ", ".join(map(printable, sorted(set(sums) ^ present)))
            raise TrainerError(
                f"the checkpoint {shown} is corrupt (not in files and list: {names})"
            )
        changed = [name for name, wanted in sums.items() if _sha256(folder / name) != wanted]
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError) as error:
        raise TrainerError(f"the checkpoint {shown} is corrupt ({error})") from error
    if changed:
        names = ", ".join(map(printable, changed))
        raise TrainerError(f"the checkpoint {shown} is corrupt (another checksum: {names})")
    return folder, state


def _blank(name: str, kind: dcp.TensorStorageMetadata, places: dict[str, Tensor]) -> Tensor:
    """Return what a tensor is read into."""
    place = places.get(name, places.get(name.rpartition(".")[0]))
    if isinstance(place, DTensor) and place.shape == kind.size:
        return torch.empty_like(place, dtype=kind.properties.dtype, requires_grad=False)
    return torch.empty(kind.size, dtype=kind.properties.dtype)
