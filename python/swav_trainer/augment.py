"""Random crops of in-memory images, a batch at a time in torch."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from swav_trainer.config import Config

BLUR_RADIUS = 2  # pixels each side


def random_crops(
    images: Tensor,
    size: int,
    area: tuple[float, float],
    config: Config,
    generator: torch.Generator,
) -> Tensor:
    """One crop of every image, distorted.

    Args:
        images: [B, C, H, W], values from 0 to 1.
        size: pixels of a crop's side.
        area: smallest and largest share of the image that a crop covers.
        config: aspect, rotation, flip, jitter, gamma and blur.
        generator: the source of all chance.

    Returns:
        [B, C, size, size].
    """
    crops = _affine(images, size, area, config, generator)
    crops = _jitter(crops, config, generator)
    return _blur(crops, config, generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(count).uniform_(low, high, generator=generator)


def _affine(
    images: Tensor,
    size: int,
    area: tuple[float, float],
    config: Config,
    generator: torch.Generator,
) -> Tensor:
    """Crop of random area, aspect, position, rotation and side, resampled once."""
    count, channels = images.shape[:2]
    share = _uniform(count, *area, generator)
    log_aspect = math.log(config.aspect)
    aspect = _uniform(count, -log_aspect, log_aspect, generator).exp()
    width, height = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    x = _uniform(count, -1, 1, generator) * (1 - width)
    y = _uniform(count, -1, 1, generator) * (1 - height)
    angle = _uniform(count, -config.rotation, config.rotation, generator) * math.pi / 180
    side = 1 - 2 * (_uniform(count, 0, 1, generator) < config.flip).float()
    sine, cosine = angle.sin(), angle.cos()
    transform = torch.stack(
        [
            torch.stack([width * cosine * side, -height * sine, x], 1),
            torch.stack([width * sine * side, height * cosine, y], 1),
        ],
        1,
    )  # [B, 2, 3]
    grid = functional.affine_grid(transform, [count, channels, size, size], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def _jitter(crops: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Contrast about the mean, brightness and gamma."""
    count = len(crops)

    def factor(strength: float) -> Tensor:
        return _uniform(count, 1 - strength, 1 + strength, generator).view(-1, 1, 1, 1)

    chosen = (_uniform(count, 0, 1, generator) < config.jitter).view(-1, 1, 1, 1)
    mean = crops.mean((1, 2, 3), keepdim=True)
    changed = ((crops - mean) * factor(config.contrast) + mean) * factor(config.brightness)
    changed = changed.clamp(0, 1) ** factor(config.gamma)
    return torch.where(chosen, changed, crops)


def _blur(crops: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Gaussian blur of a share of the crops, each with a width of its own."""
    rows = torch.nonzero(_uniform(len(crops), 0, 1, generator) < config.blur).flatten()
    sigma = _uniform(len(crops), *config.blur_sigma, generator)[rows]
    if len(rows) == 0:
        return crops
    axis = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1.0)
    kernel = torch.exp(-(axis**2) / (2 * sigma.unsqueeze(1) ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    channels = crops.shape[1]
    kernel = kernel.repeat_interleave(channels, 0)  # a group for each channel of each crop
    blurred = crops[rows].flatten(0, 1).unsqueeze(0)
    groups = blurred.shape[1]
    for shape, padding in (((1, -1), (0, BLUR_RADIUS)), ((-1, 1), (BLUR_RADIUS, 0))):
        weight = kernel.view(groups, 1, *shape)
        blurred = functional.conv2d(blurred, weight, padding=padding, groups=groups)
    return crops.index_copy(0, rows, blurred.view(len(rows), *crops.shape[1:]))
