"""Experiment trackers: TensorBoard and Weights & Biases, beside metrics.jsonl.

A tracker is a convenience: one that is missing or will not start is said before the first step, one
that fails later is said once and left, and the run goes on.
"""

import dataclasses
import importlib
import importlib.util
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from swav_trainer.alarm import Alarm
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable

NONE = "none"
PROJECT = "swav"
WANDB_ID = "wandb-id.txt"  # by it a resumed run goes on under its name


class Adapter(Protocol):
    """What differs between trackers."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def text(self, step: int, title: str, text: str) -> None:
        """Take a message."""

    def close(self) -> None:
        """Write out what is held back."""


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, config: Config, folder: Path, first_step: int) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        # what a resumed run writes again is hidden
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        self.text(first_step, "settings", "\n".join(f"    {x}" for x in _settings(config).items()))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, title: str, text: str) -> None:
        """Take a message."""
        self._writer.add_text(title, text, step)

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


class Wandb:
    """A run of the project `swav`; where it goes is up to wandb's own settings."""

    def __init__(self, config: Config, folder: Path, first_step: int) -> None:
        module = importlib.import_module("wandb")
        path = folder / WANDB_ID
        if not path.exists():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = module.init(
            project=PROJECT,
            name=printable(folder.resolve().name),
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=_settings(config),
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, title: str, text: str) -> None:
        """Take a message."""
        self._run.alert(title=title, text=text)

    def close(self) -> None:
        """Write out what is held back."""
        self._run.finish()


ADAPTERS: dict[str, Callable[[Config, Path, int], Adapter]] = {
    "tensorboard": TensorBoard, "wandb": Wandb
}  # fmt: skip


class Tracker:
    """The run's tracker, if it has one, behind a guard.

    Args:
        adapter: None for no tracker.
        name: of it.
        tell: shows a line to the user.
    """

    def __init__(self, adapter: Adapter | None, name: str, tell: Callable[[str], object]) -> None:
        self._adapter, self._name, self._tell = adapter, name, tell

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step; those that are no number are left out."""
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        self._try(lambda adapter: adapter.numbers(step, known))

    def alarm(self, alarm: Alarm) -> None:
        """Take an alarm."""
        text = f"{alarm.cause} {alarm.remedy}"
        self._try(lambda adapter: adapter.text(alarm.step, alarm.diagnosis, text))

    def close(self) -> None:
        """Write out what is held back."""
        self._try(lambda adapter: adapter.close())

    def _try(self, act: Callable[[Adapter], None]) -> None:
        if self._adapter is None:
            return
        try:
            act(self._adapter)
        except Exception as error:  # whatever it is, it is not worth a run
            self._adapter = None
            self._tell(
                f"the tracker {self._name} has failed and gets nothing more ({_reason(error)}); "
                "the run goes on, metrics.jsonl has everything"
            )


def check(name: str) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        TrainerError: with the line that installs it.
    """
    if name != NONE and importlib.util.find_spec(name) is None:
        raise TrainerError(f"--tracker {name} needs a package: pip install {name}")


def start(config: Config, folder: Path, first_step: int, tell: Callable[[str], object]) -> Tracker:
    """Start the run's tracker.

    Raises:
        TrainerError: it will not start.
    """
    name = config.tracker
    if name == NONE:
        return Tracker(None, name, tell)
    check(name)
    try:
        return Tracker(ADAPTERS[name](config, folder, first_step), name, tell)
    except Exception as error:
        raise TrainerError(
            f"--tracker {name} does not start ({_reason(error)}): mend it, or use --tracker {NONE}"
        ) from error


def _settings(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
