"""A loader's workers as processes, which share their memory with this one.

They come from multiprocessing's server, a process that has never had torch: a copy of this one
would hold locks of threads that it lacks, OpenMP's among them. Crops are written into anonymous
memory, a new one for each batch, that lives as long as the tensors in it; nothing in /dev/shm can
fill up or be left behind.
"""

import mmap
import multiprocessing
import os
import tempfile
from dataclasses import dataclass, field
from multiprocessing import connection, reduction, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from swav_trainer import cropping, worker
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.images import Images

START = "forkserver"


@dataclass
class Job:
    """A batch that is in work."""

    crops: list[np.ndarray]
    waiting: set[Connection] = field(default_factory=set)  # for these workers


class Processes:
    """Processes that decode and crop.

    Args:
        images: what they read.
        config: crops and distortions.
        count: how many processes.

    Raises:
        TrainerError: the system has no such processes.
    """

    def __init__(self, images: Images, config: Config, count: int) -> None:
        self.images = images
        self.config = config
        self._number = 0
        self._open: dict[int, Job] = {}
        self._workers: dict[Connection, BaseProcess] = {}
        # at the end of this process too, and before multiprocessing waits for its children
        self.close = util.Finalize(self, _end, (self._workers,), exitpriority=10)
        if START not in multiprocessing.get_all_start_methods():
            raise TrainerError("--loader processes cannot run on this system: use --loader threads")
        context = multiprocessing.get_context(START)
        context.set_forkserver_preload([worker.__name__])
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=worker.work, args=(theirs, images, config))
            process.daemon = True
            process.start()
            theirs.close()
            self._workers[ours] = process

    def start(self, epoch: int, rows: np.ndarray) -> Job:
        """Begin to crop these images."""
        shapes = cropping.shapes(self.config, len(rows))
        descriptor = _anonymous(sum(4 * int(np.prod(shape)) for shape in shapes))
        try:
            crops = cropping.arrays(self.config, len(rows), mmap.mmap(descriptor, 0))
            job = self._open[self._number] = Job(crops)
            for first, (pipe, process) in enumerate(self._workers.items()):
                share = rows[first :: len(self._workers)]
                if not len(share):
                    continue
                order = (self._number, epoch, len(rows), first, len(self._workers), share)
                try:
                    pipe.send(worker.Job(*order))
                    reduction.send_handle(pipe, descriptor, process.pid)
                except OSError as error:
                    raise _died(process) from error
                job.waiting.add(pipe)
        finally:
            os.close(descriptor)
        self._number += 1
        return job

    def finish(self, job: Job) -> list[np.ndarray]:
        """Wait for the crops, [count, B, 3, H, W] for each kind.

        Raises:
            TrainerError: too many images are bad, or a process has died.
        """
        while job.waiting:
            for pipe in connection.wait(list(job.waiting)):
                self._take_answer(pipe)
        return job.crops

    def _take_answer(self, pipe: Connection) -> None:
        try:
            answer: worker.Answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise _died(self._workers[pipe]) from error
        for path in answer.bad:
            self.images.bad.add(path)
        if answer.error is not None:
            raise answer.error
        job = self._open[answer.number]
        job.waiting.discard(pipe)
        if not job.waiting:
            del self._open[answer.number]


def _anonymous(size: int) -> int:
    """Return a descriptor of memory without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("swav_crops")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def _died(process: BaseProcess) -> TrainerError:
    process.join(5)
    code = process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    return TrainerError(
        f"a process that loads images has died {how}, for want of memory perhaps: use fewer "
        "--workers, or --loader threads"
    )


def _end(workers: dict[Connection, BaseProcess]) -> None:
    """End the processes at once: they hold nothing that could be lost."""
    for pipe, process in workers.items():
        process.kill()
        process.join()
        pipe.close()
    workers.clear()
