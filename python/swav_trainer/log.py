"""What a run tells while it goes: metrics.jsonl, and one live line in the terminal."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from swav_trainer import durable
from swav_trainer.alarm import Alarm
from swav_trainer.trackers import Tracker

METRICS = "metrics.jsonl"
PLAIN_SECONDS = 20.0  # between two lines where the output is no terminal


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without one that a crash left half written."""
    path = folder / METRICS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


class Log:
    """Writes metrics.jsonl, a line each `every` steps, and shows the progress.

    Args:
        folder: the run.
        first_step: lines after it are dropped: a resumed run writes them again.
        num_steps: of the whole run.
        steps_an_epoch: of an epoch.
        every: steps between two lines.
        tracker: gets what is written down.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        num_steps: int,
        steps_an_epoch: int,
        every: int,
        tracker: Tracker | None = None,
    ) -> None:
        self.console = Console(stderr=False, highlight=False)
        self._tracker = tracker
        kept = [line for line in read(folder) if line["step"] <= first_step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        self._path = folder / METRICS
        durable.write_text(self._path, text)
        self._file = self._path.open("ab", buffering=0)  # nothing that closing would write again
        self._first, self._num_steps, self._epoch_steps = first_step, num_steps, steps_an_epoch
        self._every = every
        self._started = self._shown = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("starting", total=num_steps, note="")

    def __enter__(self) -> "Log":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()

    def step(
        self, step: int, seconds: float, learning_rate: float, values: Mapping[str, float]
    ) -> None:
        """Take in one step."""
        if step % self._every == 0 or step == self._num_steps:
            line = {
                "step": step,
                "epoch": step / self._epoch_steps,
                "seconds": round(seconds, 3),
                "learning_rate": learning_rate,
                **values,
            }
            # JSON knows no NaN: view_agreement has none to show for one assign crop
            line = {name: x if x == x else None for name, x in line.items()}
            self._write(line)
            if self._tracker is not None:
                self._tracker.numbers(step, {"learning_rate": learning_rate, **values})
        now = time.perf_counter()
        a_step = (now - self._started) / max(1, step - self._first)
        epoch = -(-step // self._epoch_steps)
        note = (
            f"loss {values['loss']:.3f}  usage {values['usage_entropy']:.2f}  "
            f"{a_step * self._epoch_steps:.2f} s/epoch  "
            f"{_clock(a_step * (self._num_steps - step))} left"
        )
        epochs = self._num_steps // self._epoch_steps
        description = f"epoch {epoch}/{epochs}"
        self._progress.update(self._task, completed=step, description=description, note=note)
        is_due = now - self._shown >= PLAIN_SECONDS or step == self._num_steps
        if self._progress.disable and is_due:
            self._shown = now
            self.console.print(f"{description}  {note}", soft_wrap=True)

    def neighbours(self, step: int, accuracy: float) -> None:
        """Take in the nearest-neighbour figure at the end of an epoch, in per cent."""
        epoch = step // self._epoch_steps
        self._write({"step": step, "epoch": epoch, "knn20": accuracy})
        self.console.print(f"epoch {epoch}  20 neighbours {accuracy:.1f} %", soft_wrap=True)
        if self._tracker is not None:
            self._tracker.numbers(step, {"knn20": accuracy})

    def alarm(self, alarm: Alarm) -> None:
        """Show an alarm and write it down."""
        self._write({"step": alarm.step, "alarm": vars(alarm)})
        self.console.print(f"[bold red]alarm[/] {alarm}", soft_wrap=True)
        if self._tracker is not None:
            self._tracker.alarm(alarm)

    def _write(self, line: Mapping[str, Any]) -> None:
        """Add a line; one that is cut off by a full disk is passed over by `read`."""
        content = json.dumps(line).encode() + b"\n"
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise durable.cannot_write(self._path, error, size=len(content)) from error


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
