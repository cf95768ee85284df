"""Backbones: images [B, C, H, W] to features [B, dim]."""

from torch import nn

from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.networks import yours
from swav_trainer.networks.resnet import RESNETS, BasicBlock, Bottleneck, ResNet
from swav_trainer.networks.small import SmallNet
from swav_trainer.networks.vit import PATCH, VITS, Block, ViT

BLOCKS = (BasicBlock, Bottleneck, Block)  # of the networks of ours


def build(config: Config, num_channels: int) -> tuple[nn.Module, int]:
    """Return the backbone that the settings name, and the length of its features.

    Raises:
        TrainerError: it does not fit the images.
    """
    if config.model:
        backbone = yours.load(config.model)
        return backbone, yours.dim_of(backbone, num_channels, config)
    if config.arch == "small":
        network = SmallNet(num_channels, config.width, config.recompute)
        return network, network.dim
    if num_channels != 3:
        raise TrainerError(
            f"--arch {config.arch} wants images of 3 channels, these have {num_channels}: use "
            "--arch small"
        )
    if config.arch in RESNETS:
        network = ResNet(*RESNETS[config.arch], recompute=config.recompute)
        return network, network.dim
    for kind in config.crop_kinds:
        if kind.size < PATCH:
            raise TrainerError(
                f"--arch {config.arch} sees patches of {PATCH} pixels, crops {kind} are smaller"
            )
    network = ViT(num_channels, config.eval_size, *VITS[config.arch], config.recompute)
    return network, network.dim
