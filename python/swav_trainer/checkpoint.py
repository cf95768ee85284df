"""One file a checkpoint: tensors in safetensors, the rest and a checksum as JSON in its header.

The checkpoint before it stays beside it, so that one always can be read.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from swav_trainer import durable
from swav_trainer.errors import TrainerError, printable

NAME, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
CORRUPT = "checkpoint.corrupt.safetensors"
# of a run in shards
SHARDS, PREVIOUS_SHARDS = "checkpoint", "checkpoint.previous"
CORRUPT_SHARDS = "checkpoint.corrupt"
T = TypeVar("T")


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash at any moment leaves it or the one before, never half of one."""
    tensors = _apart(tensors)
    text = json.dumps(state)
    metadata = {"state": text, "sha256": _checksum(tensors, text)}
    content = to_bytes(tensors, metadata=metadata)
    try:
        durable.write(path, content, "the checkpoint", path.with_name(PREVIOUS))
    except TrainerError as error:
        raise before_is_intact(error) from error


def before_is_intact(error: TrainerError) -> TrainerError:
    """Return the error of a checkpoint that could not be written."""
    return TrainerError(f"{error}; a checkpoint written before is intact")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each in memory of its own: a network may know one under two names."""
    result, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def load(path: Path, set_aside: bool = False) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read a checkpoint, or the one before it.

    Args:
        path: the newest one.
        set_aside: rename a corrupt one, so that no later save takes it for one that is good.

    Returns:
        Tensors, state, and what was wrong with the newest one, or "".

    Raises:
        TrainerError: there is none, or none that can be read.
    """
    corrupt = path.with_name(CORRUPT) if set_aside else None
    (tensors, state), problem = newest(path, path.with_name(PREVIOUS), corrupt, _read)
    return tensors, state, problem


def newest(
    path: Path, previous: Path, corrupt: Path | None, read: Callable[[Path], T]
) -> tuple[T, str]:
    """Read a checkpoint, or the one before it.

    Args:
        path: the newest one.
        previous: the one before it.
        corrupt: what to rename a corrupt one to, or None.
        read: what reads one, or raises TrainerError.

    Returns:
        What was read, and what was wrong with the newest one, or "".

    Raises:
        TrainerError: there is none, or none that can be read.
    """
    if not path.exists() and not previous.exists():
        raise TrainerError(
            f"no checkpoint {printable(path)}: --resume wants the folder of a run; if that stopped "
            "before its first checkpoint, start it again with --output"
        )
    try:
        return read(path), ""
    except TrainerError as error:
        if not previous.exists():
            raise
        found = read(previous)
        if corrupt is not None and path.exists():
            if corrupt.is_dir():
                shutil.rmtree(corrupt)
            path.replace(corrupt)
        return found, f"{error}; going on from the one before it"


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    shown = printable(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text, checksum = (file.metadata()[key] for key in ("state", "sha256"))
        state = json.loads(text)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(f"the checkpoint {shown} is corrupt ({error})") from error
    if checksum != _checksum(tensors, text):
        raise TrainerError(f"the checkpoint {shown} is corrupt (its checksum is another one)")
    return tensors, state


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def does_not_fit(path: Path, error: Exception) -> TrainerError:
    """Return the error of a checkpoint that is not one of its run's settings."""
    reason = str(error).strip().splitlines()[0]
    return TrainerError(
        f"the checkpoint {printable(path)} does not fit its run ({reason}): start the run again"
    )


def restore_model(model: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        TrainerError: they are not this model's.
    """
    prefix = "model."
    weights = {
        name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise does_not_fit(path, error) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by parameter number and name."""
    return {
        f"optimizer.{number}.{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
