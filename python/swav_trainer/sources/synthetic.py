"""`synthetic:COUNTxSIZE[xCLASSES]`: images made from their number, for tests of load and presets.

A class is the direction and the width of stripes; their colours, their phase and the noise are an
image's own, so that raw pixels tell little and a trained network much.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch

from swav_trainer.config import Config
from swav_trainer.data import Dataset, image_parts
from swav_trainer.errors import TrainerError, printable
from swav_trainer.images import BadFiles, Image

CLASSES = 10  # unless the user names another number
MOST_SIZE, NOISE = 4096, 64


def load(config: Config, place: str) -> Dataset:
    """Number the images and split them.

    Raises:
        TrainerError: the numbers are none or make no data set.
    """
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})(?:x([0-9]{1,9}))?", place, re.ASCII)
    numbers = match.groups(str(CLASSES)) if match else ("0", "0", "0")
    count, size, classes = map(int, numbers)
    if not (2 <= classes <= count and 4 <= size <= MOST_SIZE):
        raise TrainerError(
            "synthetic data are COUNTxSIZE or COUNTxSIZExCLASSES, 2 classes at least, an image of "
            f"each and sides of 4 to {MOST_SIZE} pixels, as in synthetic:1280x224, got "
            f"{printable(place)!r}"
        )
    labels = torch.arange(count) % classes
    parts = image_parts(Stripes(size, classes), labels, BadFiles(count), config)
    name = f"synthetic-{count}x{size}x{classes}"
    return Dataset(name, tuple(f"stripes {i}" for i in range(classes)), *parts, name)


class Stripes:
    """Striped images [size, size, 3].

    Args:
        size: pixels of a side.
        classes: how many there are; image `row` is of class `row % classes`.
    """

    def __init__(self, size: int, classes: int) -> None:
        self.size = size
        self.classes = classes

    def path(self, row: int) -> Path:
        """Its number, there being no file."""
        return Path(str(row))

    def decode(self, row: int) -> Image:
        """Paint the image."""
        rng = np.random.default_rng((self.size, self.classes, row))
        label = row % self.classes
        angle = math.pi * (label + rng.uniform(-0.2, 0.2)) / self.classes
        waves = 3 + 3 * (label % 3)  # across the image
        steps = np.arange(self.size, dtype=np.float32) * (2 * math.pi * waves / self.size)
        phase = steps * math.cos(angle) + (steps * math.sin(angle))[:, None]  # [size, size]
        weight = 0.5 + 0.5 * np.sin(phase + np.float32(rng.uniform(0, 2 * math.pi)))
        first, second = rng.uniform(0, 255 - NOISE, (2, 3)).astype(np.float32)
        pixels = weight[..., None] * (second - first) + first
        return pixels.astype(np.uint8) + rng.integers(0, NOISE, pixels.shape, dtype=np.uint8)
