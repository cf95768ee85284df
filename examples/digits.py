"""What the examples share: scikit-learn's digits, crops of them, a small network, a score."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize

HELD_OUT = 400


def load() -> tuple[Tensor, Tensor]:
    """All 1797 images [N, 1, 8, 8] from 0 to 1 and their labels [N]; the last 400 are held out."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    return images, torch.from_numpy(data.target)


def batches(images: Tensor, size: int) -> list[Tensor]:
    """Images to learn from in a new order, in whole batches."""
    rows = torch.randperm(len(images) - HELD_OUT).split(size)
    return [images[part] for part in rows if len(part) == size]


def crop(images: Tensor, size: int, area: tuple[float, float]) -> Tensor:
    """A random part of each image, turned a little, darker or brighter: [B, 1, size, size]."""
    side = torch.empty(len(images)).uniform_(*area).sqrt()
    angle = torch.empty(len(images)).uniform_(-0.25, 0.25)  # radians
    shift = torch.empty(2, len(images)).uniform_(-1, 1) * (1 - side)
    cos, sin = side * angle.cos(), side * angle.sin()
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(-1, 2, 3)
    grid = affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    light = torch.empty(len(images), 1, 1, 1).uniform_(0.6, 1.4)
    return grid_sample(images, grid, align_corners=False) * light


def multi_crop(images: Tensor, small: int = 4) -> list[Tensor]:
    """Two large crops, then small ones."""
    large = [crop(images, 8, (0.5, 1.0)) for _ in range(2)]
    return large + [crop(images, 6, (0.25, 0.6)) for _ in range(small)]


def backbone() -> nn.Sequential:
    """Images of any size -> [B, 64]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def head() -> nn.Sequential:
    """[B, 64] -> projections [B, 32]."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(),
        nn.Linear(128, 32), nn.BatchNorm1d(32, affine=False),
    )  # fmt: skip


@torch.no_grad()
def neighbours(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Per cent of held-out images whose nearest neighbour among the others has their label."""
    was_training = network.training
    features = normalize(network.eval()(images), dim=1)
    network.train(was_training)
    nearest = (features[-HELD_OUT:] @ features[:-HELD_OUT].T).argmax(1)
    return 100 * (labels[nearest] == labels[-HELD_OUT:]).float().mean().item()
