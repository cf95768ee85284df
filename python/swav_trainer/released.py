"""Networks of released weights: ResNet-50s that take ImageNet's mean and deviation off first."""

from functools import partial

import torch
from torch import Tensor

from swav_trainer.config import Config
from swav_trainer.networks.resnet import RESNETS, ResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue; values from 0 to 1
MODULE = "swav_trainer.released:"  # begins the setting `model` of an imported run


def is_released(config: Config) -> bool:
    """Tell whether a run was imported."""
    return config.model.startswith(MODULE)


class NormalisedResNet(ResNet):
    """ResNet for images of values from 0 to 1 whose weights were learned on normalised ones."""

    def __init__(self, arch: str) -> None:
        super().__init__(*RESNETS[arch])
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> features [B, dim]."""
        return super().forward((x - self.mean) / self.std)


resnet50 = partial(NormalisedResNet, "resnet50")
resnet50w2 = partial(NormalisedResNet, "resnet50w2")
resnet50w4 = partial(NormalisedResNet, "resnet50w4")
resnet50w5 = partial(NormalisedResNet, "resnet50w5")
