"""ResNet without its classifier; its parameters have torchvision's names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from swav_trainer.networks.recompute import run

# blocks a stage, whether they are bottlenecks, channels in units of ResNet's, and whether it begins
# as for images of 32 pixels (He et al. 2016, section 4.2: one 3x3 convolution, no pooling)
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False, 1),
    "resnet18_cifar": ((2, 2, 2, 2), False, 1, True),
    "resnet34": ((3, 4, 6, 3), False, 1),
    "resnet50": ((3, 4, 6, 3), True, 1),
    "resnet50w2": ((3, 4, 6, 3), True, 2),
    "resnet50w4": ((3, 4, 6, 3), True, 4),
    "resnet50w5": ((3, 4, 6, 3), True, 5),
}


FEWEST_CHANNELS = 8  # of a strided 1x1 convolution that torch's own may compute


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; parameter names are torchvision's."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
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
        self.conv1, self.bn1 = conv(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = conv(channels, outputs, 1), nn.BatchNorm2d(outputs)
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
    small = inputs < FEWEST_CHANNELS and stride > 1
    first = Sampled(inputs, outputs, stride) if small else conv(inputs, outputs, 1, stride)
    return nn.Sequential(first, nn.BatchNorm2d(outputs))


class Sampled(nn.Conv2d):
    """A 1x1 convolution of stride `stride`: one of every `stride`-th pixel is the same.

    torch 2.13's own, of fewer than 8 channels that lie together, writes outside its memory in the
    backward pass on processors of AMD.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        sampled = x[:, :, :: self.stride[0], :: self.stride[1]]
        return functional.conv2d(sampled.contiguous(memory_format=torch.channels_last), self.weight)


class ResNet(nn.Module):
    """ResNet up to its features.

    Args:
        blocks: of each of the four stages.
        bottleneck: of three convolutions a block in place of two.
        widen: channels in units of ResNet's.
        fine: begin with a 3x3 convolution and no pooling, for small images.
        recompute: keep the activations between stages only.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        bottleneck: bool,
        widen: int,
        fine: bool = False,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        block = Bottleneck if bottleneck else BasicBlock
        inputs = 64 * widen
        self.conv1 = conv(3, inputs, 3) if fine else conv(3, inputs, 7, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.maxpool = nn.Identity() if fine else nn.MaxPool2d(3, 2, 1)
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
            x = run(stage, x, self.recompute)
        return x.mean((2, 3))
