"""Random resized crops, mirrored at times, with labels: what the literature fine-tunes on."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from swav_trainer import seeds
from swav_trainer.augment import random_crops
from swav_trainer.config import Config
from swav_trainer.data import Part

AREA = (0.08, 1.0)  # share of the image that a crop covers, as in training a supervised network
AHEAD = 2  # batches of files that are decoded before they are asked for

Batch = tuple[Tensor, Tensor]  # [B, C, S, S] and labels [B]


def batches(part: Part, config: Config, epoch: int, most: int) -> Iterator[Batch]:
    """Yield crops of every image once, `most` at a time, in the order of the epoch.

    The last, incomplete batch is dropped unless it is the only one. Crops are as large as the
    images of the evaluation and are mirrored as often as the run's.
    """
    order = seeds.order(config.seed, epoch, len(part))
    chosen = order.split(most)[: max(1, len(part) // most)]
    plain = dataclasses.replace(config, rotation=0.0, jitter=0.0, grey=0.0, blur=0.0)
    if isinstance(part.images, Tensor):
        size = part.images.shape[-1]
        for step, rows in enumerate(chosen):
            generator = seeds.torch_generator(config.seed, epoch, step)
            yield random_crops(part.images[rows], size, AREA, plain, generator), part.labels[rows]
    else:
        yield from _of_files(part, plain, epoch, chosen)


def _of_files(
    part: Part, config: Config, epoch: int, chosen: tuple[Tensor, ...]
) -> Iterator[Batch]:
    from swav_trainer import files

    size = config.eval_size

    def crop(row: int) -> Tensor:
        rng = np.random.default_rng((config.seed, epoch, row))
        image = files.random_crop(part.images.read(row), size, AREA, config, rng)
        out = np.empty((3, size, size), np.float32)
        files.to_channels_first(image, out)
        return torch.from_numpy(out)

    with ThreadPoolExecutor(config.workers or None) as pool:
        waiting: deque[tuple[Tensor, Iterator[Tensor]]] = deque()
        for rows in [*chosen, *[None] * AHEAD]:
            if rows is not None:
                waiting.append((rows, pool.map(crop, rows.tolist())))
            if waiting and (rows is None or len(waiting) > AHEAD):
                rows, crops = waiting.popleft()
                yield torch.stack(list(crops)), part.labels[rows]
