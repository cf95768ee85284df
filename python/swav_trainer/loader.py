"""Batches of crops, the same for the same seed whatever threads or processes do."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from swav_trainer import ranks, seeds
from swav_trainer.augment import random_crops
from swav_trainer.config import Config
from swav_trainer.crops import Area
from swav_trainer.data import Part

if TYPE_CHECKING:  # OpenCV, for files only
    from swav_trainer.processes import Processes
    from swav_trainer.threads import Threads

AHEAD = 2  # batches of files that are decoded before they are asked for

Batch = tuple[int, Tensor]  # epoch and images


def _key(batch: Batch) -> tuple[int, ...]:
    epoch, rows = batch
    return epoch, *rows.tolist()


def num_workers(config: Config) -> int:
    """How many threads or processes load files: one for each core, which processes here share."""
    if config.workers:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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
        self.waited = 0.0  # seconds in which those who asked for batches had none
        self._workers: Threads | Processes | None = None
        self._begun: dict[tuple[int, ...], Any] = {}  # jobs of the workers

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """Yield this process's crops of each step, [count B, C, H, W] for each kind."""
        return self._timed(self._batches(epoch, first_step))

    def micro_batches(self, epoch: int, step: int) -> Iterator[list[Tensor]]:
        """Yield the same crops of one step in even parts, of `batch` images at most."""
        return self._timed(self._micro_batches(epoch, step))

    def _timed(self, batches: Iterator[list[Tensor]]) -> Iterator[list[Tensor]]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _batches(self, epoch: int, first_step: int) -> Iterator[list[Tensor]]:
        rows = [self.rows(epoch, step) for step in range(first_step, self.steps)]
        if self.files is None:
            for step, chosen in enumerate(rows, first_step):
                yield self._crop_in_memory(epoch, step, chosen, self.first)
        else:
            # the next epoch's first ones too, so that no worker waits at its turn
            following = [
                (epoch + 1, self.rows(epoch + 1, step))
                for step in range(min(AHEAD, self.steps) if epoch + 1 < self.config.epochs else 0)
            ]
            yield from self._crop_files([(epoch, x) for x in rows], following)

    def _micro_batches(self, epoch: int, step: int) -> Iterator[list[Tensor]]:
        parts = self.parts(epoch, step)
        if self.files is None:
            first = self.first
            for rows in parts:
                yield self._crop_in_memory(epoch, step, rows, first)
                first += len(rows)
        else:
            yield from self._crop_files([(epoch, x) for x in parts])

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

    def _crop_files(
        self, batches: list[Batch], following: Sequence[Batch] = ()
    ) -> Iterator[list[Tensor]]:
        every = [*batches, *following]
        near = {_key(batch) for batch in every[: AHEAD + 1]}
        self._begun = {key: job for key, job in self._begun.items() if key in near}
        for number, batch in enumerate(batches):
            for epoch, rows in every[number : number + AHEAD + 1]:
                key = _key((epoch, rows))
                if key not in self._begun:
                    self._begun[key] = self._crew().start(epoch, rows.numpy())
            yield self._finish(self._begun.pop(_key(batch)))

    def _finish(self, job: Any) -> list[Tensor]:
        return [torch.from_numpy(crops).flatten(0, 1) for crops in self._crew().finish(job)]

    def _crew(self) -> "Threads | Processes":
        """Those who decode and crop, from the first batch on."""
        if self._workers is None:
            from swav_trainer import processes, threads

            crew = threads.Threads if self.config.loader == "threads" else processes.Processes
            assert self.files is not None
            self._workers = crew(self.files, self.config, num_workers(self.config))
        return self._workers

    def close(self) -> None:
        """End the threads or processes; a further batch would begin with new ones."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        self._begun.clear()

    def whole(self, rows: range, size: int) -> Tensor:
        """Whole images of these rows, [n, C, H, W]; files as their central square."""
        if self.files is None:
            return self.part.images[rows.start : rows.stop]
        from swav_trainer import files

        images = np.empty((len(rows), 3, size, size), np.float32)

        def write(row: int) -> None:
            image = files.central(self.files.read(row), size)
            files.to_channels_first(image, images[row - rows.start])

        with ThreadPoolExecutor(num_workers(self.config)) as pool:
            list(pool.map(write, rows))
        return torch.from_numpy(images)
