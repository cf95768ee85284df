"""A network of the user's, or one of a library's."""

import copy
import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from swav_trainer.config import Config
from swav_trainer.errors import TrainerError

HEADS = ("fc", "classifier", "heads", "head")  # of torchvision's networks


def load(name: str) -> nn.Module:
    """Make the network that package.module:callable, timm:NAME or torchvision:NAME names.

    Raises:
        TrainerError: there is none, or it makes no torch module.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise TrainerError(
            f"--model wants package.module:callable, timm:NAME or torchvision:NAME, got {name!r}"
        )
    try:
        package = importlib.import_module(module)
    except Exception as error:  # a library may fail in any way as it is imported
        raise TrainerError(
            f"--model {name}: {module} cannot be imported ({type(error).__name__}: {error}); is it "
            "installed, or its folder on PYTHONPATH?"
        ) from error
    try:
        network = _make(package, module, attribute)
    except AttributeError as error:
        raise TrainerError(f"--model {name}: {error}") from error
    except Exception as error:  # it is the user's code
        raise TrainerError(f"--model {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise TrainerError(f"--model {name} returns {type(network).__name__}, not a torch module")
    return network


def _make(package: ModuleType, module: str, attribute: str) -> object:
    if module == "timm":
        return package.create_model(attribute, num_classes=0)  # without its classifier
    if module == "torchvision":
        network = importlib.import_module("torchvision.models").get_model(attribute, weights=None)
        name = next(head for head in HEADS if hasattr(network, head))
        setattr(network, name, nn.Identity())
        return network
    build = getattr(package, attribute)
    return build() if callable(build) else None


@torch.no_grad()
def dim_of(backbone: nn.Module, num_channels: int, config: Config) -> int:
    """Length of the features, from crops of chance as the training gives them."""
    probe = copy.deepcopy(backbone)  # batch norms count what they see
    sizes = [kind.size for kind in config.crop_kinds]
    shapes = []
    for size in sizes:
        images = torch.rand(2, num_channels, size, size)
        try:
            features = probe(images.contiguous(memory_format=torch.channels_last))
        except Exception as error:  # it is the user's code
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise TrainerError(
                f"--model {config.model} fails on crops {list(images.shape)}, channels last: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise TrainerError(
                f"--model {config.model} must return features [B, dim], got {got} for crops "
                f"{list(images.shape)}: pool and flatten them"
            )
        shapes.append(features.shape[1])
    if len(set(shapes)) > 1:
        raise TrainerError(
            f"--model {config.model} returns features of lengths {shapes} for crops of {sizes} "
            "pixels: pool them to one length"
        )
    return int(shapes[0])
