"""The device and the untrained model of a run."""

import torch

from swav_trainer import ranks, seeds
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.model import Model


def pick_device(name: str) -> torch.device:
    """Return the device that the settings name; auto is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = ranks.local_device(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainerError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def build_model(config: Config, num_channels: int, device: torch.device) -> Model:
    """Return the untrained model of a run, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.number(config.seed))
        model = Model(config, num_channels)
    dtype = getattr(torch, config.dtype)
    return model.to(device, dtype, memory_format=torch.channels_last)
