"""Backbones, the projection head and the prototypes."""

import copy
import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import swav_kernels as sk
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError

RESNETS = {  # blocks a stage, whether they are bottlenecks, and channels in units of ResNet's
    "resnet18": ((2, 2, 2, 2), False, 1),
    "resnet34": ((3, 4, 6, 3), False, 1),
    "resnet50": ((3, 4, 6, 3), True, 1),
    "resnet50w2": ((3, 4, 6, 3), True, 2),
    "resnet50w4": ((3, 4, 6, 3), True, 4),
    "resnet50w5": ((3, 4, 6, 3), True, 5),
}


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; parameter names are torchvision's."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.downsample = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; parameter names are torchvision's."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1, self.bn1 = _conv(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _conv(channels, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """ResNet without its classifier; its parameters have torchvision's names."""

    def __init__(self, blocks: Sequence[int], bottleneck: bool, widen: int) -> None:
        super().__init__()
        block = Bottleneck if bottleneck else BasicBlock
        inputs = 64 * widen
        self.conv1, self.bn1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False), nn.BatchNorm2d(inputs)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for stage, count in enumerate(blocks):
            channels = 64 * widen * 2**stage
            layers = []
            for i in range(count):
                layers.append(block(inputs, channels, 2 if stage > 0 and i == 0 else 1))
                inputs = channels * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.dim = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> features [B, dim]."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean((2, 3))


class SmallNet(nn.Module):
    """A convolution and three residual blocks of stride 2, for images of some 24 pixels."""

    def __init__(self, num_channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(num_channels, width, 3), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            BasicBlock(width, width, 2),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 4 * width, 2),
        )
        self.dim = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> features [B, dim]."""
        return self.blocks(functional.relu(self.bn1(self.conv1(x)))).mean((2, 3))


def load_network(name: str) -> nn.Module:
    """Call package.module:callable of the user's.

    Raises:
        TrainerError: there is none, or it makes no torch module.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise TrainerError(f"--model wants package.module:callable, got {name!r}")
    try:
        build = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TrainerError(f"--model {name}: {error}; is its folder on PYTHONPATH?") from error
    try:
        network = build() if callable(build) else None
    except Exception as error:  # it is the user's code
        raise TrainerError(f"--model {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise TrainerError(f"--model {name} returns {type(network).__name__}, not a torch module")
    return network


@torch.no_grad()
def _dim_of(backbone: nn.Module, num_channels: int, config: Config) -> int:
    """Length of the features; of a user's network from blank crops, as the training gives them."""
    if not config.model:
        return backbone.dim
    probe = copy.deepcopy(backbone)  # batch norms count what they see
    sizes = [config.global_size, config.local_size][: 2 if config.local_crops else 1]
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


class Model(nn.Module):
    """Backbone, head and prototypes of a run."""

    def __init__(self, config: Config, num_channels: int) -> None:
        super().__init__()
        if config.model:
            self.backbone = load_network(config.model)
        elif config.arch == "small":
            self.backbone = SmallNet(num_channels, config.width)
        else:
            self.backbone = ResNet(*RESNETS[config.arch])
        dim = _dim_of(self.backbone, num_channels, config)
        self.head = nn.Sequential(
            nn.Linear(dim, config.hidden_dim),
            nn.BatchNorm1d(config.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden_dim, config.feature_dim),
        )
        if config.head_batch_norm:
            self.head.append(nn.BatchNorm1d(config.feature_dim, affine=False))
        self.prototypes = sk.Prototypes(config.feature_dim, config.num_prototypes)

    def forward(self, crops: Sequence[Tensor]) -> Tensor:
        """Project crops of each size, [V_i B, C, H_i, W_i], to normalised features [V B, D]."""
        features = [self.backbone(x.contiguous(memory_format=torch.channels_last)) for x in crops]
        return functional.normalize(self.head(torch.cat(features)), dim=1)


class Projection(torch.nn.Module):
    """Backbone and head: what is compared with the prototypes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> projected features [B, D]."""
        return self.model([images])
