"""A run's checkpoint in the form that its settings ask for: one file, or a folder of shards."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from swav_trainer import checkpoint, ranks
from swav_trainer.build import build_model
from swav_trainer.config import Config
from swav_trainer.model import Model

NAMES = (
    checkpoint.NAME, checkpoint.PREVIOUS, checkpoint.SHARDS, checkpoint.PREVIOUS_SHARDS,
)  # fmt: skip


def path(run: Path, config: Config) -> Path:
    """Where the newest checkpoint of a run is."""
    return run / (checkpoint.SHARDS if config.shard else checkpoint.NAME)


def save(run: Path, config: Config, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint; all processes call it."""
    if config.shard:
        _sharded().save(path(run, config), tensors, state)
    else:  # whose mistake is that of all, and ends all
        ranks.tell(lambda: checkpoint.save(path(run, config), tensors, state))


def load(
    run: Path, config: Config, places: dict[str, Tensor] | None = None, set_aside: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read a checkpoint, or the one before it; all processes call it.

    Args:
        run: the folder.
        config: its settings.
        places: parameters whose shards are wanted in place of whole tensors.
        set_aside: rename a corrupt one, so that no later save takes it for one that is good.

    Returns:
        Tensors, state, and what was wrong with the newest one, or "".

    Raises:
        TrainerError: there is none, or none that can be read.
    """
    if config.shard:
        return _sharded().load(path(run, config), places or {}, set_aside)
    return checkpoint.load(path(run, config), set_aside and ranks.is_main())


def trained(
    run: Path, config: Config, num_channels: int, device: torch.device
) -> tuple[Model, str]:
    """Return a run's whole model, and what was wrong with its newest checkpoint, or ""."""
    model = build_model(config, num_channels, device)
    tensors, _, problem = load(run, config)
    checkpoint.restore_model(model, tensors, path(run, config))
    return model, problem


def _sharded() -> ModuleType:
    from swav_trainer import sharded_checkpoint  # torch takes a second to import it

    return sharded_checkpoint
