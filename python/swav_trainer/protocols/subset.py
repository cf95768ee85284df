"""Which images a protocol takes: drawn by seed, class by class."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from swav_trainer import seeds
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError


def need_labels(dataset: Dataset, purpose: str) -> int:
    """Return the number of classes.

    Raises:
        TrainerError: the images carry no labels to tell apart.
    """
    labels = torch.cat([dataset.train.labels, dataset.test.labels])
    if len(dataset.classes) < 2 or len(labels.unique()) < 2 or int(labels.min()) < 0:
        raise TrainerError(
            f"{purpose} needs labels, and the images of {dataset.name} have none to tell apart: "
            "give --data folder:PATH with a folder for each class, two at least"
        )
    return len(dataset.classes)


def draw(labels: Tensor, per_class: int, *position: int) -> Tensor:
    """Rows of `per_class` images of every class, or of all that it has; sorted."""
    return torch.cat([rows[:per_class] for rows in shuffled(labels, *position)]).sort().values


def percent(labels: Tensor, share: float, seed: int) -> Tensor:
    """Rows of `share` per cent of the images, as many of each class and at least one; sorted."""
    per_class = round(share / 100 * len(labels) / len(labels.unique()))
    return draw(labels, max(1, per_class), seed, round(1000 * share))


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows class by class: those to fit, and a share of each class to choose by.

    Raises:
        TrainerError: no class has two images.
    """
    fit, choose = [], []
    for rows in shuffled(labels, seed):
        count = 0 if len(rows) == 1 else max(1, round(share * len(rows)))
        choose.append(rows[:count])
        fit.append(rows[count:])
    if not sum(map(len, choose)):
        raise TrainerError(
            f"{len(labels)} training images, one a class, leave none to choose a probe by: add "
            "images"
        )
    return torch.cat(fit), torch.cat(choose)


def shuffled(labels: Tensor, *position: int) -> Iterator[Tensor]:
    """Yield the rows of each class, in random order."""
    rng = np.random.default_rng(seeds.number(*position))
    for label in labels.unique():
        yield torch.from_numpy(rng.permutation(torch.nonzero(labels == label).flatten().numpy()))
