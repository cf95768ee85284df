"""Batches of crops, the same for the same seed whatever the threads do."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from swav_trainer import ranks, seeds
from swav_trainer.augment import random_crops
from swav_trainer.config import Config
from swav_trainer.crops import Area
from swav_trainer.data import Part

AHEAD = 2  # batches of files that are decoded before they are asked for


class Loader:
    """Crops of the training images, batch by batch, and whole images for the evaluation.

    Args:
        part: the images.
        config: batch size, crops and distortions.
    """

    def __init__(self, part: Part, config: Config) -> None:
        self.part = part
        self.config = config
        self.steps = len(part) // config.step_images
        # of this process: images at a time, in a step, and before its own in a step
        self.batch = ranks.share(config.batch_size, "--batch-size")
        self.share = ranks.share(config.step_images, "--effective-batch")
        self.first = ranks.index() * self.share
        self.files = None if isinstance(part.images, Tensor) else part.images

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """Yield this process's crops of each step, [count B, C, H, W] for each kind."""
        rows = [self.rows(epoch, step) for step in range(first_step, self.steps)]
        if self.files is None:
            for step, chosen in enumerate(rows, first_step):
                yield self._crop_in_memory(epoch, step, chosen, self.first)
        else:
            yield from self._crop_files(epoch, rows)

    def micro_batches(self, epoch: int, step: int) -> Iterator[list[Tensor]]:
        """Yield the same crops of one step in even parts, of `batch` images at most."""
        parts = self.parts(epoch, step)
        if self.files is None:
            first = self.first
            for rows in parts:
                yield self._crop_in_memory(epoch, step, rows, first)
                first += len(rows)
        else:
            yield from self._crop_files(epoch, parts)

    def parts(self, epoch: int, step: int) -> list[Tensor]:
        """The images of this process in a step, in even parts."""
        return list(self.rows(epoch, step).tensor_split(-(-self.share // self.batch)))

    def rows(self, epoch: int, step: int) -> Tensor:
        """The images of this process in a step."""
        order = seeds.order(self.config.seed, epoch, len(self.part))
        first = step * self.config.step_images + self.first
        return order[first : first + self.share]

    def _crop_in_memory(self, epoch: int, step: int, rows: Tensor, first: int) -> list[Tensor]:
        generator = seeds.torch_generator(self.config.seed, epoch, step)
        images, whole = self.part.images[rows], self.config.step_images

        def crop(size: int, area: Area) -> Tensor:
            return random_crops(images, size, area, self.config, generator, first, whole)

        return [
            torch.cat([crop(kind.size, kind.area) for _ in range(kind.count)])
            for kind in self.config.crop_kinds
        ]

    def _crop_files(self, epoch: int, batches: list[Tensor]) -> Iterator[list[Tensor]]:
        with ThreadPoolExecutor(self.config.workers or None) as pool:
            waiting: deque[tuple[list[Future[None]], list[np.ndarray]]] = deque()
            for rows in [*batches, *[None] * AHEAD]:
                if rows is not None:
                    crops = [
                        np.empty((x.count, len(rows), 3, x.size, x.size), np.float32)
                        for x in self.config.crop_kinds
                    ]
                    futures = [
                        pool.submit(self._crop_file, epoch, int(row), [x[:, i] for x in crops])
                        for i, row in enumerate(rows)
                    ]
                    waiting.append((futures, crops))
                if waiting and (rows is None or len(waiting) > AHEAD):
                    futures, crops = waiting.popleft()
                    for future in futures:
                        future.result()
                    yield [torch.from_numpy(x).flatten(0, 1) for x in crops]

    def _crop_file(self, epoch: int, row: int, out: list[np.ndarray]) -> None:
        """Write one file's crops of each kind, [count, 3, size, size]."""
        from swav_trainer import files

        assert self.files is not None
        image = self.files.read(row)
        for i, kind in enumerate(self.config.crop_kinds):
            for crop in range(kind.count):
                rng = np.random.default_rng((self.config.seed, epoch, row, i, crop))
                cropped = files.random_crop(image, kind.size, kind.area, self.config, rng)
                files.to_channels_first(cropped, out[i][crop])

    def whole(self, rows: range, size: int) -> Tensor:
        """Whole images of these rows, [n, C, H, W]; files as their central square."""
        if self.files is None:
            return self.part.images[rows.start : rows.stop]
        from swav_trainer import files

        images = np.empty((len(rows), 3, size, size), np.float32)

        def write(row: int) -> None:
            image = files.central(self.files.read(row), size)
            files.to_channels_first(image, images[row - rows.start])

        with ThreadPoolExecutor(self.config.workers or None) as pool:
            list(pool.map(write, rows))
        return torch.from_numpy(images)
