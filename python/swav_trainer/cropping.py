"""Crops of images into arrays: what a loader's workers do. Processes do it without torch."""

import math

import numpy as np

from swav_trainer import files
from swav_trainer.config import Config
from swav_trainer.images import Images


def shapes(config: Config, count: int) -> list[tuple[int, ...]]:
    """Shapes of the crops of `count` images, [V, B, C, H, W] for each kind."""
    return [(kind.count, count, 3, kind.size, kind.size) for kind in config.crop_kinds]


def arrays(config: Config, count: int, memory: memoryview) -> list[np.ndarray]:
    """Lay out the crops of `count` images in memory, float32, kind after kind."""
    found, first = [], 0
    for shape in shapes(config, count):
        size = math.prod(shape)
        found.append(np.frombuffer(memory, np.float32, size, first * 4).reshape(shape))
        first += size
    return found


def crop_image(
    images: Images, config: Config, epoch: int, index: int, out: list[np.ndarray], place: int
) -> None:
    """Write one image's crops of each kind, out[kind][:, place]; the same in every process."""
    image = images.read(index)
    for i, (kind, crops) in enumerate(zip(config.crop_kinds, out, strict=True)):
        for crop in range(kind.count):
            rng = np.random.default_rng((config.seed, epoch, index, i, crop))
            cropped = files.random_crop(image, kind.size, kind.area, config, rng)
            files.to_channels_first(cropped, crops[crop, place])
