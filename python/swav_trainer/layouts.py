"""How other libraries name the weights of a ResNet's backbone."""

import re
from collections.abc import Callable

from torch import Tensor

from swav_trainer.errors import TrainerError

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")  # those that the libraries have too
COUNTER = "num_batches_tracked"  # which frozen batch norms lack


def convert(weights: dict[str, Tensor], layout: str, arch: str) -> dict[str, Tensor]:
    """Return the tensors by the names of a layout.

    Raises:
        TrainerError: it has no such network.
    """
    if arch not in ARCHITECTURES:
        raise TrainerError(
            f"--layout {layout} has {', '.join(ARCHITECTURES)}, and this run's network is {arch}: "
            "leave --layout out for its own names, or write --layout onnx"
        )
    rename = NAMES[layout]
    pairs = ((rename(name), tensor) for name, tensor in weights.items())
    return {name: tensor for name, tensor in pairs if name is not None}


def _detectron2(name: str) -> str | None:
    """layer1.0.bn2.weight -> res2.0.conv2.norm.weight; what precedes the stages is the stem."""
    if name.endswith(COUNTER):
        return None
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    stage = re.match(r"layer(\d)", name)
    if stage is None:
        return f"stem.{name}"
    return f"res{int(stage[1]) + 1}{name[stage.end() :]}"


def _detr(name: str) -> str | None:
    return None if name.endswith(COUNTER) else f"backbone.0.body.{name}"


NAMES: dict[str, Callable[[str], str | None]] = {
    "torchvision": str,
    "timm": str,
    "detectron2": _detectron2,
    "detr": _detr,
}
INSIDE_MODEL = ("detectron2", "detr")  # their .pth files hold the tensors under "model"
