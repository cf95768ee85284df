"""Backbones for torch.hub: `torch.hub.load(path_or_repository, "resnet50", weights=...)`."""

import os
import sys
from pathlib import Path

dependencies = ["torch", "numpy", "safetensors"]
if sys.version_info < (3, 11):
    dependencies.append("tomli")

# a checkout need not be installed; an installed trainer comes first
sys.path.append(str(Path(__file__).resolve().parent / "python"))

from swav_trainer import hub as _hub  # noqa: E402
from torch import nn as _nn  # noqa: E402

_Weights = str | os.PathLike[str] | None


def resnet18(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-18 without its classifier: see `resnet50`."""
    return _hub.backbone("resnet18", weights, normalize)


def resnet18_cifar(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-18 as for images of 32 pixels: see `resnet50`."""
    return _hub.backbone("resnet18_cifar", weights, normalize)


def resnet34(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-34 without its classifier: see `resnet50`."""
    return _hub.backbone("resnet34", weights, normalize)


def resnet50(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-50 without its classifier, from images [B, 3, H, W] to features [B, 2048].

    Args:
        weights: the folder of a run, or a file that `swav export` wrote without --layout, or with
            torchvision's or timm's; None leaves random weights.
        normalize: take ImageNet's mean and deviation off the images, as released weights want;
            the folder of an imported run says so itself.
    """
    return _hub.backbone("resnet50", weights, normalize)


def resnet50w2(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-50 with twice the channels: see `resnet50`."""
    return _hub.backbone("resnet50w2", weights, normalize)


def resnet50w4(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-50 with four times the channels: see `resnet50`."""
    return _hub.backbone("resnet50w4", weights, normalize)


def resnet50w5(weights: _Weights = None, normalize: bool = False) -> _nn.Module:
    """ResNet-50 with five times the channels: see `resnet50`."""
    return _hub.backbone("resnet50w5", weights, normalize)
