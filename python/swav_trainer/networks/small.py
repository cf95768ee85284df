"""A net for images of some 24 pixels."""

from torch import Tensor, nn
from torch.nn import functional

from swav_trainer.networks.recompute import run
from swav_trainer.networks.resnet import BasicBlock, conv


class SmallNet(nn.Module):
    """A convolution and three residual blocks of stride 2, for images of some 24 pixels."""

    def __init__(self, num_channels: int, width: int, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.conv1, self.bn1 = conv(num_channels, width, 3), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            BasicBlock(width, width, 2),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 4 * width, 2),
        )
        self.dim = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> features [B, dim]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        return run(self.blocks, x, self.recompute).mean((2, 3))
