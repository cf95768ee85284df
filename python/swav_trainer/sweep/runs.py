"""The runs of a sweep, each in a process of its own and in a folder of its own."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from swav_trainer import data, evaluation, log, saved, settings
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable
from swav_trainer.evaluation import Scores
from swav_trainer.protocols.subset import need_labels
from swav_trainer.report import FIGURES
from swav_trainer.sweep.cells import Cell, Group

LOG = "train.log"  # of a run, in its folder


@dataclass(frozen=True)
class Run:
    """One cell with one seed."""

    name: str
    folder: Path
    config: Config


@dataclass(frozen=True)
class Result:
    """What came of one run; without scores it failed."""

    scores: Scores = field(default_factory=dict)
    seconds: float = 0.0
    alarms: tuple[str, ...] = ()
    problem: str = ""

    @classmethod
    def of(cls, folder: Path, problem: str = "") -> "Result":
        """Read it from a run's folder; `problem` is what to say of a run without an evaluation."""
        file = folder / evaluation.FILE
        alarms = tuple(line["alarm"]["diagnosis"] for line in log.read(folder) if "alarm" in line)
        if not file.exists():
            return cls(alarms=alarms, problem=problem)
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(values["swav"], float(values["seconds"]), alarms)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainerError(f"{printable(file)} is no evaluation of a run: {error!r}") from error

    def __str__(self) -> str:
        """One line for the log."""
        if not self.scores:
            return f"failed: {self.problem}"
        name, title = next(iter(FIGURES.items()))
        alarms = "".join(f", {alarm}" for alarm in self.alarms)
        return f"{title} {self.scores[name]:.1f} ({self.seconds:.0f} s{alarms})"


def folder_of(output: Path, cell: Cell, seed: int) -> Path:
    """Where a cell's run with this seed is."""
    return output / cell.folder / f"seed-{seed}"


def prepare(groups: Sequence[Group], seeds: Sequence[int], output: Path) -> list[Run]:
    """Every run once, with its folder and its settings in it.

    Raises:
        TrainerError: a folder holds a run of other settings, or cannot be written.
    """
    runs: dict[Path, Run] = {}
    for cell in (cell for group in groups for cell in group.cells):
        for seed in seeds:
            folder = folder_of(output, cell, seed)
            place = settings.resolve_data(cell.config.data)
            config = dataclasses.replace(cell.config, seed=seed, data=place)
            run = runs.setdefault(folder, Run(f"{cell.label}, seed {seed}", folder, config))
            if run.config != config:
                raise TrainerError(
                    f"{run.name} and {cell.label}, seed {seed} would share the folder "
                    f"{printable(folder)}: sweep over them one at a time"
                )
    for config in {run.config.data: run.config for run in runs.values()}.values():
        need_labels(data.load(config), "a sweep")
    for run in runs.values():
        file = run.folder / settings.FILE
        if file.exists() and settings.load(file) != run.config:
            raise TrainerError(
                f"{printable(run.folder)} holds a run of other settings: name another --output"
            )
    for run in runs.values():
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            settings.save(run.config, run.folder / settings.FILE)
        except OSError as error:
            shown = printable(run.folder)
            raise TrainerError(f"cannot write to {shown}: {error.strerror}") from error
    return list(runs.values())


class Workers:
    """Runs processes, so many at a time; ends them when it is left early.

    Args:
        jobs: how many.
    """

    def __init__(self, jobs: int) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_open = True
        self._environment = dict(os.environ)
        if jobs > 1:  # else each takes all cores
            threads = max(1, (os.cpu_count() or 1) // jobs)
            self._environment.setdefault("OMP_NUM_THREADS", str(threads))

    def __enter__(self) -> "Workers":
        # by SIGTERM the runs are asked to write their checkpoints, as by Ctrl-C
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_open = False
            for process in self._live:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, self._before)

    def finish(self, runs: Sequence[Run]) -> Iterator[tuple[Run, Result]]:
        """Yield each run with its result, as they end; a finished one is not run again."""
        futures = {self._pool.submit(self._train, run): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _train(self, run: Run) -> Result:
        if (run.folder / evaluation.FILE).exists():
            return Result.of(run.folder)
        command = [sys.executable, "-m", "swav_trainer", "train"]
        if any((run.folder / name).exists() for name in saved.NAMES):
            command += ["--resume", str(run.folder)]
        else:
            command += ["--preset", str(run.folder / settings.FILE), "--output", str(run.folder)]
        with (run.folder / LOG).open("wb") as file:
            with self._lock:
                if not self._is_open:
                    return Result(problem="not started")
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=self._environment
                )
                self._live.add(process)
            status = process.wait()
        with self._lock:
            self._live.discard(process)
        return Result.of(run.folder, _last_words(run.folder / LOG, status))


def _last_words(file: Path, status: int) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    words = printable(lines[-1].strip()) if lines else "no word of it"
    return f"{words} (exit status {status})"
