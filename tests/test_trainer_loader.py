"""Loading by threads and by processes: the same crops, clean ends, and what happens in between."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import pictures
from swav_trainer import data
from swav_trainer.config import Config
from swav_trainer.data import Part
from swav_trainer.errors import TrainerError
from swav_trainer.images import BadFiles, Images
from swav_trainer.loader import Loader
from swav_trainer.settings import load_preset

KINDS = ("threads", "processes")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twenty pictures, in batches of five."""
    folder = pictures(tmp_path_factory.mktemp("images") / "set")
    return dataclasses.replace(
        load_preset("folder"), data=f"folder:{folder}", batch_size=5, crops="2x16+3x8"
    )


def batches(part: Part, settings: Config, **changes: object) -> list[list[torch.Tensor]]:
    """All batches of an epoch, by a loader of its own."""
    loader = Loader(part, dataclasses.replace(settings, **changes))
    found = list(loader.batches(1))
    loader.close()
    return found


def is_soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_crops_are_the_same_bit_for_bit(settings: Config, kind: str, workers: int) -> None:
    part = data.load(settings).train
    wanted = batches(part, settings, loader="threads", workers=2)
    assert [tuple(x.shape) for x in wanted[0]] == [(10, 3, 16, 16), (15, 3, 8, 8)]
    assert not torch.equal(wanted[0][0], wanted[1][0])
    found = batches(part, settings, loader=kind, workers=workers)
    assert len(found) == len(wanted) == 3
    for one, other in zip(found, wanted, strict=True):
        assert all(map(torch.equal, one, other))


def test_processes_serve_epoch_after_epoch_and_parts_of_batches(settings: Config) -> None:
    part = data.load(settings).train
    threads, processes = (
        Loader(
            part,
            dataclasses.replace(settings, batch_size=2, effective_batch=5, loader=kind, workers=2),
        )
        for kind in KINDS
    )
    next(processes.batches(0))  # and the other batches are left
    for epoch in (0, 1):
        for step in (0, 2):
            found, wanted = (list(x.micro_batches(epoch, step)) for x in (processes, threads))
            assert len(found) == 3
            for one, other in zip(found, wanted, strict=True):
                assert all(map(torch.equal, one, other))
    before = {child.pid for child in multiprocessing.active_children()}
    assert len(before) == 2
    processes.close()
    assert multiprocessing.active_children() == []
    assert len(list(processes.batches(0))) == 3  # by new ones
    assert before.isdisjoint(child.pid for child in multiprocessing.active_children())
    del processes
    assert multiprocessing.active_children() == []  # a loader that is forgotten ends them too


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_epoch_is_begun_before_its_turn(settings: Config, kind: str) -> None:
    part = data.load(settings).train
    loader = Loader(part, dataclasses.replace(settings, loader=kind, epochs=3))
    started: list[int] = []
    start = loader._crew().start
    loader._crew().start = lambda epoch, rows: (started.append(epoch), start(epoch, rows))[1]
    steps = loader.steps
    list(loader.batches(0))
    assert started == [0] * steps + [1, 1]
    second = list(loader.batches(1))
    assert started == [0] * steps + [1] * steps + [2, 2]
    again = list(loader.batches(1))  # what was begun of epoch 2 is forgotten
    assert started.count(1) == 2 * steps
    list(loader.batches(2))
    assert started.count(2) == 2 + steps  # nothing follows the last epoch
    loader.close()
    for wanted in (batches(part, settings), again):
        for x, y in zip(second, wanted, strict=True):
            assert all(map(torch.equal, x, y))


def test_processes_are_safe_beside_threads_of_torch(settings: Config, threads: None) -> None:
    torch.set_num_threads(2)
    torch.rand(500, 500) @ torch.rand(500, 500)
    part = data.load(settings).train
    assert len(batches(part, settings, loader="processes", workers=2)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_counted_in_this_process(settings: Config, kind: str, tmp_path: Path) -> None:
    changed = dataclasses.replace(
        settings, data=f"folder:{pictures(tmp_path / 'set', each=110)}", loader=kind, workers=2
    )
    dataset = data.load(changed)
    paths = dataset.train.images.paths
    for path in paths[:2]:
        path.write_bytes(b"no image")
    batches(dataset.train, changed)
    assert dataset.bad_files.paths == set(paths[:2])
    assert "2 of 220 image files" in dataset.note_on_bad_files()
    paths[2].write_bytes(b"no image")
    with pytest.raises(TrainerError, match=r"3 of 220 .* more than 1%"):
        batches(dataset.train, changed)


class Broken:
    """Images of a source with a mistake in it."""

    def path(self, row: int) -> Path:
        return Path(str(row))

    def decode(self, row: int) -> np.ndarray:
        raise ZeroDivisionError("a mistake of ours")


@pytest.mark.parametrize(
    ("kind", "wanted"), [("threads", ZeroDivisionError), ("processes", RuntimeError)]
)
def test_a_mistake_in_a_worker_is_raised_here(
    settings: Config, kind: str, wanted: type[Exception]
) -> None:
    part = Part(Images(Broken(), np.arange(20), BadFiles(20)), torch.zeros(20))
    with pytest.raises(wanted, match="a mistake of ours"):
        batches(part, settings, loader=kind, workers=1)


def test_a_process_that_dies_is_an_error_and_no_hang(settings: Config) -> None:
    changed = dataclasses.replace(settings, loader="processes", workers=2)
    loader = Loader(data.load(changed).train, changed)
    next(loader.batches(0))
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(TrainerError, match=r"died by signal 9.*--loader threads"):
        list(loader.batches(0))
    assert time.monotonic() - started < 5
    loader.close()
    assert multiprocessing.active_children() == []


def test_processes_are_without_torch() -> None:
    code = "import sys, swav_trainer.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_system_without_such_processes_is_told_so(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(TrainerError, match="use --loader threads"):
        batches(data.load(settings).train, settings, loader="processes")


class Slow:
    """Images that take a while."""

    def path(self, row: int) -> Path:
        return Path(str(row))

    def decode(self, row: int) -> np.ndarray:
        time.sleep(0.02)
        return np.zeros((16, 16, 3), np.uint8)


def test_the_loader_counts_the_time_that_was_waited_for_it(settings: Config) -> None:
    part = Part(Images(Slow(), np.arange(20), BadFiles(20)), torch.zeros(20))
    loader = Loader(part, dataclasses.replace(settings, workers=1))
    list(loader.batches(0))
    assert 0.4 <= loader.waited < 1.5  # 20 x 0.02
    hungry = loader.waited
    for _ in loader.batches(0):
        time.sleep(0.2)  # the network takes its time
    assert loader.waited - hungry < 0.35  # the first batches, and no other
    list(loader.micro_batches(0, 0))
    assert loader.waited - hungry > 0.1
    loader.close()


# --- runs -----------------------------------------------------------------------------------------

STOP_AT_STEP_3 = (
    "import os, signal, sys\n"
    "from swav_trainer import cli, engine\n"
    "step = engine.Trainer._train_step\n"
    "def stop(self, *batch):\n"
    "    if self.step == 3:\n"
    "        import multiprocessing\n"
    "        print('workers', *(x.pid for x in multiprocessing.active_children()), flush=True)\n"
    "        {end}\n"
    "    return step(self, *batch)\n"
    "engine.Trainer._train_step = stop\n"
    "sys.exit(cli.main(sys.argv[1:]))\n"
)


def stopped_run(settings: Config, run: Path, end: str) -> subprocess.CompletedProcess[str]:
    """A run on files by two processes that does `end` at its third step."""
    options = ["--data", settings.data, "--output", str(run), "--loader", "processes"]
    options += ["--workers", "2", "--batch-size", "4", "--num-prototypes", "4", "--crops", "2x16"]
    options += ["--areas", "0.25", "1", "--arch", "small", "--width", "4", "--hidden-dim", "8"]
    code = STOP_AT_STEP_3.replace("{end}", end)
    return subprocess.run(
        [sys.executable, "-c", code, "train", *options], capture_output=True, text=True,
        timeout=120, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os.killpg(0, signal.SIGINT)", 130),  # a terminal and a scheduler tell the whole group
        ("os.killpg(0, signal.SIGTERM)", 0),
        ("raise ZeroDivisionError", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_no_process_outlives_its_run(
    settings: Config, tmp_path: Path, end: str, status: int
) -> None:
    result = stopped_run(settings, tmp_path / "run", end)
    assert result.returncode == status, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("workers"))
    workers = line.split()[1:]
    assert len(workers) == 2
    assert is_soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    if "killpg" in end:
        assert "checkpoint is written" in result.stdout
        assert result.stderr == ""
