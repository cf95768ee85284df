"""A long run holds no more at its end than at its beginning: memory, file handles, threads."""

import dataclasses
import gc
import os
from pathlib import Path

import numpy as np
import pytest
from depth import count
from faults import child
from pictures import pictures
from swav_trainer import data
from swav_trainer.engine import Trainer
from swav_trainer.log import Log
from swav_trainer.settings import load_preset

EVERY = 20  # steps between two looks
NOISE = 3  # slopes of this many standard errors are none
MOST = 4e6  # bytes of growth over the run that are none, whatever the noise: the allocator's


def held() -> tuple[int, int, int]:
    """Bytes of this process in memory, its open files, its threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )  # fmt: skip


def growth(values: np.ndarray) -> tuple[float, float]:
    """What a straight line through the values gains from first to last, and its standard error."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    slope = (x @ values) / (x @ x)
    rest = values - values.mean() - slope * x
    error = np.sqrt((rest @ rest) / (len(values) - 2) / (x @ x))
    return slope * (len(values) - 1), error * (len(values) - 1)


def soak(settings, folder: Path, steps: int) -> None:
    """Train for so many steps, as `swav train` does, and hold the second half to be level."""
    dataset = data.load(settings)
    steps_an_epoch = Trainer(settings, dataset, folder).loader.steps
    trainer = Trainer(
        dataclasses.replace(settings, epochs=-(-steps // steps_an_epoch)), dataset, folder
    )
    seen, step = [], trainer._observe

    def looking(*arguments) -> None:
        step(*arguments)
        if trainer.step % EVERY == 0:
            seen.append(held())

    trainer._observe = looking
    with Log(folder, 0, trainer.num_steps, trainer.loader.steps, 10) as log:
        assert trainer.train(log)
    assert len(seen) >= steps // EVERY
    memory, files, threads = np.array(seen[len(seen) // 2 :], dtype=float).T
    gain, error = growth(memory)
    print(f"memory {memory[-1] / 1e6:.1f} MB, gain {gain / 1e6:.3f} +- {error / 1e6:.3f} MB")
    assert gain <= max(NOISE * error, MOST), (gain, error)
    assert files.max() == files.min(), files
    assert threads.max() == threads.min(), threads


def test_growth_is_seen() -> None:
    drawn = np.random.default_rng(0).normal(size=50)
    gain, error = growth(1e6 * drawn)
    assert abs(gain) < NOISE * error
    gain, error = growth(1e6 * drawn + 4e5 * np.arange(50))
    assert gain > max(NOISE * error, MOST)


@pytest.mark.deep
def test_the_demo_for_2000_steps(tmp_path: Path) -> None:
    """Its network and crops, on the digits of scikit-learn."""
    settings = dataclasses.replace(
        load_preset("mnist5k"), data="digits", checkpoint_every=5, knn_every=5, queue_length=256
    )
    assert child(soak, settings, tmp_path, count(100, 2000)) == 0


@pytest.mark.deep
@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_files_for_2000_steps(loader: str, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 60)
    settings = dataclasses.replace(
        load_preset("folder"), data=f"folder:{images}", loader=loader, workers=2, arch="small",
        width=8, hidden_dim=16, feature_dim=16, num_prototypes=6, batch_size=8, crops="2x16+1x8",
        checkpoint_every=5,
    )  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    assert child(soak, settings, run, count(100, 2000)) == 0
