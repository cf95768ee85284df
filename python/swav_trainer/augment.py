"""Random crops of in-memory images, a batch at a time in torch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from swav_trainer.config import Config

BLUR_RADIUS = 2  # pixels each side

Uniform = Callable[[float, float], Tensor]  # random numbers [B] between two


def random_crops(
    images: Tensor,
    size: int,
    area: tuple[float, float],
    config: Config,
    generator: torch.Generator,
    first: int = 0,
    batch: int | None = None,
) -> Tensor:
    """One crop of every image, distorted.

    Args:
        images: [B, C, H, W], values from 0 to 1.
        size: pixels of a crop's side.
        area: smallest and largest share of the image that a crop covers.
        config: aspect, rotation, flip, jitter, gamma and blur.
        generator: the source of all chance.
        first: these images are a part of a larger batch, whose first one of them this is; they are
            cropped as they would be in the whole.
        batch: images of the whole.

    Returns:
        [B, C, size, size].
    """
    total = len(images) if batch is None else batch

    def uniform(low: float, high: float) -> Tensor:
        numbers = torch.empty(total).uniform_(low, high, generator=generator)
        return numbers[first : first + len(images)]

    crops = _affine(images, size, area, config, uniform)
    crops = _jitter(crops, config, uniform)
    return _blur(crops, config, uniform)


def _affine(
    images: Tensor,
    size: int,
    area: tuple[float, float],
    config: Config,
    uniform: Uniform,
) -> Tensor:
    """Crop of random area, aspect, position, rotation and side, resampled once."""
    count, channels = images.shape[:2]
    share = uniform(*area)
    log_aspect = math.log(config.aspect)
    aspect = uniform(-log_aspect, log_aspect).exp()
    width, height = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    x = uniform(-1, 1) * (1 - width)
    y = uniform(-1, 1) * (1 - height)
    angle = uniform(-config.rotation, config.rotation) * math.pi / 180
    side = 1 - 2 * (uniform(0, 1) < config.flip).float()
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


def _jitter(crops: Tensor, config: Config, uniform: Uniform) -> Tensor:
    """Contrast about the mean, brightness and gamma."""

    def factor(strength: float) -> Tensor:
        return uniform(1 - strength, 1 + strength).view(-1, 1, 1, 1)

    chosen = (uniform(0, 1) < config.jitter).view(-1, 1, 1, 1)
    mean = crops.mean((1, 2, 3), keepdim=True)
    changed = ((crops - mean) * factor(config.contrast) + mean) * factor(config.brightness)
    changed = changed.clamp(0, 1) ** factor(config.gamma)
    return torch.where(chosen, changed, crops)


def _blur(crops: Tensor, config: Config, uniform: Uniform) -> Tensor:
    """Gaussian blur of a share of the crops, each with a width of its own."""
    rows = torch.nonzero(uniform(0, 1) < config.blur).flatten()
    sigma = uniform(*config.blur_sigma)[rows]
    if len(rows) == 0:
        return crops
    axis = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1.0)
    kernel = torch.exp(-(axis**2) / (2 * sigma.unsqueeze(1) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).view(len(rows), 1, 1, 1, -1).unbind(-1)
    blurred = crops[rows]
    # tap by tap: how a convolution adds them up may depend on how many crops there are
    for dim in (-1, -2):
        size = blurred.shape[dim]
        padding = (
            (BLUR_RADIUS, BLUR_RADIUS, 0, 0) if dim == -1 else (0, 0, BLUR_RADIUS, BLUR_RADIUS)
        )
        padded = functional.pad(blurred, padding)
        blurred = kernel[0] * padded.narrow(dim, 0, size)
        for tap in range(1, len(kernel)):
            blurred += kernel[tap] * padded.narrow(dim, tap, size)
    return crops.index_copy(0, rows, blurred)
