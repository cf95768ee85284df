"""`python -m benchmarks.loading`: the trainer's loader by threads and by processes.

Both decode the files of `benchmarks.multicrop`, of 500x375 pixels, and make their crops, as fast as
they can, in turns. Printed are images/s, cores kept busy, and images/s of one busy core, which says
what a worker costs on a machine that others use too.
"""

import argparse
import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from swav_trainer.data import Part
from swav_trainer.images import BadFiles, Images
from swav_trainer.loader import Loader

from benchmarks.multicrop import recipe, write_jpeg

NUM_IMAGES, BATCH = 256, 32
TURNS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each kind of loader."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        write_jpeg(path)
        loaders = {kind: _loader(path, kind, options.workers) for kind in ("threads", "processes")}
        turns: dict[str, list[tuple[float, float]]] = {kind: [] for kind in loaders}
        for turn in range(1 + TURNS):
            for kind, loader in loaders.items():
                seconds = _seconds_of_an_epoch(loader, turn)
                if turn:  # the first one starts the workers
                    turns[kind].append(seconds)
    for kind, found in turns.items():
        wall, cpu = np.median(found, 0)
        print(
            f"{kind:<10} {options.workers} workers {NUM_IMAGES / wall:>8.1f} images/s, "
            f"{cpu / wall:.2f} cores busy, {NUM_IMAGES / cpu:.1f} images/s of a core"
        )
    for loader in loaders.values():
        loader.close()
    return 0


def _loader(path: Path, kind: str, workers: int) -> Loader:
    from swav_trainer.files import ImageFiles

    source = ImageFiles([path] * NUM_IMAGES)
    images = Images(source, np.arange(NUM_IMAGES), BadFiles(NUM_IMAGES))
    settings = dataclasses.replace(recipe(), loader=kind, workers=workers, batch_size=BATCH)
    return Loader(Part(images, torch.zeros(NUM_IMAGES, dtype=torch.int64)), settings)


def _seconds_of_an_epoch(loader: Loader, epoch: int) -> tuple[float, float]:
    """Wall and processor time, of this process and its loaders."""
    started, busy = time.perf_counter(), _busy()
    for _ in loader.batches(epoch):
        pass
    return time.perf_counter() - started, _busy() - busy


def _busy() -> float:
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user and in system mode
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
