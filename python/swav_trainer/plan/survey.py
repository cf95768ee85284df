"""What there is: images, classes, sizes, and the machine that is meant."""

import statistics
from dataclasses import dataclass

import numpy as np
import torch

from swav_trainer.data import Dataset, Part
from swav_trainer.errors import TrainerError

SAMPLE = 100  # files that are decoded
FEWEST = 64  # training images
SHARE_OF_RAM = 0.5  # of what is free: a desktop goes on


@dataclass(frozen=True)
class Survey:
    """What the rules look at."""

    images: int  # to learn from
    classes: int
    side: int  # typical shorter side, in pixels
    gpus: int  # 0 is the CPU
    memory: float  # bytes of a device
    is_here: bool  # the device meant is this machine's


def look(dataset: Dataset, gpus: int | None, memory: float | None) -> Survey:
    """Count images and measure a sample of them.

    Args:
        dataset: the folder's.
        gpus: meant; None for those that are here.
        memory: GiB of each device; None for what is here.

    Raises:
        TrainerError: too few images, or a machine that is not this one and not described.
    """
    if len(dataset.train) < FEWEST:
        raise TrainerError(
            f"{len(dataset.train)} images to learn from are too few, {FEWEST} at least: add images "
            "or lower --holdout"
        )
    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    if gpus < 0 or (memory is not None and memory <= 0):
        raise TrainerError("--gpus must be 0 or more, --memory above 0")
    is_here = gpus <= here
    if not is_here and memory is None:
        raise TrainerError(
            f"--gpus {gpus}, but {here} are here: give the memory of each as --memory GIB too"
        )
    bytes_there = _memory_here(gpus) if memory is None else memory * 2**30
    return Survey(
        len(dataset.train), len(dataset.classes), _side(dataset.train), gpus, bytes_there, is_here
    )


def _memory_here(gpus: int) -> float:
    if gpus:
        return min(torch.cuda.mem_get_info(i)[1] for i in range(gpus))
    return SHARE_OF_RAM * _free_ram()


def _free_ram() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":") for line in file)
        return float(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError) as error:
        raise TrainerError(
            "the memory of this machine is not known: give it as --memory GIB"
        ) from error


def _side(part: Part) -> int:
    """Median of the shorter side over a sample of the files."""
    images = part.images
    assert not isinstance(images, torch.Tensor)
    rows = np.random.default_rng(0).permutation(len(images))[:SAMPLE]
    decoded = [images.source.decode(row) for row in images.rows[rows].tolist()]
    sides = [min(image.shape[:2]) for image in decoded if image is not None]
    if len(sides) < len(rows) / 2:
        raise TrainerError(
            f"{len(rows) - len(sides)} of {len(rows)} files that were tried cannot be read"
        )
    return round(statistics.median(sides))
