"""Backbones by name, with the weights of a run or an exported file: what hubconf.py offers."""

import os
from pathlib import Path

from torch import nn

from swav_trainer import released, weights
from swav_trainer.errors import TrainerError, printable
from swav_trainer.networks.resnet import RESNETS, ResNet
from swav_trainer.settings import FILE, load


def backbone(arch: str, source: str | os.PathLike[str] | None, normalize: bool) -> nn.Module:
    """Return a network from images [B, 3, H, W], values from 0 to 1, to features [B, dim].

    Args:
        arch: one of `RESNETS`.
        source: folder of a run, file of `swav export`, or None for random weights.
        normalize: take ImageNet's mean and deviation off the images first.

    Raises:
        TrainerError: the weights cannot be read, or are of another network.
    """
    tensors = {}
    if source is not None and Path(source).is_dir():
        run_settings = load(Path(source) / FILE)
        normalize = normalize or released.is_released(run_settings)
        tensors, _ = weights.of_run(Path(source), run_settings)
    elif source is not None:
        tensors = weights.read(Path(source))
    network = released.NormalisedResNet(arch) if normalize else ResNet(*RESNETS[arch])
    if source is not None:
        try:
            network.load_state_dict(tensors)
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainerError(f"{printable(source)} is no {arch}: {reason}") from error
    return network
