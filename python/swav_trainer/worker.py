"""What a loader's process does: waits for jobs, writes crops into memory that it is handed."""

import mmap
import os
import signal
import traceback
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swav_trainer import cropping
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.images import Images


class Job(NamedTuple):
    """One worker's part of a batch; the memory follows by itself."""

    number: int
    epoch: int
    size: int  # images in the batch
    first: int  # this part's places in it: from here on, every `step`th
    step: int
    rows: np.ndarray  # the images at these places


class Answer(NamedTuple):
    """A job that is done."""

    number: int
    bad: set[Path]  # files that were found to be so, each one once
    error: Exception | None


def work(jobs: Connection, images: Images, config: Config) -> None:
    """Do jobs until the other end has gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the trainer stops in its own time
        signal.signal(number, signal.SIG_IGN)
    known = set(images.bad.paths)
    try:
        while True:
            job: Job = jobs.recv()
            descriptor = reduction.recv_handle(jobs)
            try:
                error = _do(job, descriptor, images, config)
            finally:
                os.close(descriptor)
            found = images.bad.paths - known
            known |= found
            jobs.send(Answer(job.number, found, error))
    except (EOFError, OSError):
        return


def _do(job: Job, descriptor: int, images: Images, config: Config) -> Exception | None:
    """Crop the images; a mistake is handed over, and not raised here."""
    try:
        crops = cropping.arrays(config, job.size, mmap.mmap(descriptor, 0))
        for i, index in enumerate(job.rows.tolist()):
            place = job.first + i * job.step
            cropping.crop_image(images, config, job.epoch, index, crops, place)
    except TrainerError as error:
        return error
    except Exception:
        return RuntimeError(traceback.format_exc())
    return None
