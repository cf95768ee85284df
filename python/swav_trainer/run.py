"""`swav train`: settings, data, training, evaluation and report, in this order."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from swav_trainer import (
    accumulation,
    data,
    durable,
    machine,
    ranks,
    released,
    report,
    saved,
    settings,
    sources,
    trackers,
)
from swav_trainer.build import build_model
from swav_trainer.clock import peak_memory
from swav_trainer.config import FIELDS, FOLDER_PREFIX, Config
from swav_trainer.data import Dataset
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError, printable
from swav_trainer.evaluation import FILE, evaluate, rounded
from swav_trainer.log import Log, read
from swav_trainer.protocols.subset import need_labels
from swav_trainer.table import scores_table

RUNS = Path("runs")
KEPT = "swav_trainer.folder"  # under torchrun, for a restart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Config):
    """Train SwAV, evaluate the features and write a report.

    Defaults are those of the preset, which --data picks unless --preset names one.
    """

    preset: str = "mnist5k"
    """A name that `swav presets` lists, or a .toml file: every setting, or some and a `base`."""
    output: Path | None = None
    """Folder of the run; by default runs/ and the data's name, with a number if that is taken."""
    resume: Path | None = None
    """Folder of a run to go on with; no other option beside it."""


def train(arguments: Sequence[str]) -> int:
    """Run `swav train` with its arguments; returns the exit code."""
    resume = _value_of("resume", arguments)
    if resume is not None:
        if len(arguments) > (1 if arguments[0].startswith("--resume=") else 2):
            raise TrainerError("--resume takes every setting from the run: give no other option")
        return _resume(Path(resume))
    preset = _value_of("preset", arguments)
    if preset is None:
        preset = settings.preset_for(_value_of("data", arguments))
    defaults = dataclasses.asdict(settings.load_preset(preset))
    if defaults["data"] == FOLDER_PREFIX and _value_of("data", arguments) is None:
        raise TrainerError(f"the preset {preset} needs --data folder:PATH")
    options = tyro.cli(
        Options,
        args=list(arguments),
        default=Options(**defaults, preset=preset),
        prog="swav train",
    )
    values = {field.name: getattr(options, field.name) for field in FIELDS}
    config = Config(**{**values, "data": settings.resolve_data(options.data)})
    output = options.output
    if ranks.restarts():
        kept = ranks.recall(KEPT)
        output = output if kept is None else Path(kept)
        if output is not None and _holds_a_run(output):
            return _resume(output)
    if output is not None and _holds_a_run(output):
        raise TrainerError(
            f"{printable(output)} holds a run already: go on with --resume {printable(output)}, or "
            "name another --output"
        )
    ranks.join(config.device)
    trainer = _prepare(config, output or RUNS)
    # only now, when the settings have been tried
    trainer.folder = ranks.tell(lambda: _new_folder(output, trainer))
    ranks.remember(KEPT, str(trainer.folder))
    return _run(trainer)


def _resume(folder: Path) -> int:
    if not folder.is_dir():
        raise TrainerError(f"no folder {printable(folder)}: --resume wants the folder of a run")
    config = settings.load(folder / settings.FILE)
    if released.is_released(config):
        raise TrainerError(f"{printable(folder)} was imported: it has no training to go on with")
    ranks.join(config.device)
    trainer = _prepare(config, folder)
    return _run(trainer, trainer.restore())


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    """Return the value of an option that decides over the other ones' defaults."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
        if argument == f"--{name}":
            if i + 1 == len(arguments):
                raise TrainerError(f"--{name} needs a value")
            return arguments[i + 1]
    return None


def _holds_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in saved.NAMES)


def _new_folder(output: Path | None, trainer: Trainer) -> Path:
    """Make the folder of a run, with its settings."""
    name = trainer.dataset.name
    candidates = (RUNS / (name if i == 1 else f"{name}-{i}") for i in range(1, 10**6))
    folder = output or RUNS
    try:
        if output is None:
            folder = next(path for path in candidates if _claim(path))
        folder.mkdir(parents=True, exist_ok=True)
        settings.save(trainer.config, folder / settings.FILE)
    except OSError as error:
        raise TrainerError(f"cannot write to {printable(folder)}: {error.strerror}") from error
    return folder


def _claim(folder: Path) -> bool:
    """Make the folder; False if it is there, be it another run's that starts at this moment."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _prepare(config: Config, folder: Path) -> Trainer:
    trackers.check(config.tracker)
    dataset = data.load(config)
    _refuse_what_does_nothing(config, dataset)
    # before the training: a part too bad to be judged by would waste it
    dataset = dataclasses.replace(dataset, test=dataset.test.readable(config.workers))
    return Trainer(config, dataset, folder)


def _refuse_what_does_nothing(config: Config, dataset: Dataset) -> None:
    """Raise TrainerError for settings that these images leave without effect."""
    if config.knn_every:
        need_labels(dataset, "--knn-every")
    in_memory = config.data in sources.IN_MEMORY
    names = ("saturation", "hue", "grey") if in_memory else ("rotation", "gamma")
    kind = "have no colours" if in_memory else "are not turned and have no gamma"
    for name in names:
        if getattr(config, name):
            raise TrainerError(
                f"--{name} must be 0 for --data {printable(config.data)}, whose images {kind}, got "
                f"{getattr(config, name):g}"
            )


def _run(trainer: Trainer, problem: str = "") -> int:
    """Train, then evaluate; `problem` is what the user should know of the checkpoint."""
    console = Console(highlight=False, quiet=not ranks.is_main())
    dataset, folder = trainer.dataset, trainer.folder
    if problem:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(
        f"{dataset.name}: {len(dataset.train)} images to learn from, {len(dataset.test)} held out; "
        f"{trainer.num_steps} steps on {_where(trainer)}; run {printable(folder)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if trainer.loader.share > trainer.loader.batch:
        console.print(accumulation.summary(trainer), markup=False, soft_wrap=True)
    if not dataset.has_labels:
        console.print(
            f"{dataset.name} has no labels, or one class: it is learned from, but there will be no "
            f"evaluation; for a report: swav report {printable(folder)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    is_main = ranks.is_main()
    try:
        finished = _train(trainer)
    except RuntimeError as error:
        if not ranks.is_loss_of_a_process(error):
            raise
        raise TrainerError(
            f"another process of this run has gone or hangs ({str(error).splitlines()[0][:120]}); "
            f"go on from the last checkpoint with --resume {printable(folder)}"
        ) from error
    finally:
        trainer.release()
        ranks.leave()  # the evaluation is one process's, and may take longer than a collective
    if not is_main:
        sys.stdout.flush()
        # nothing is left to do, and to take a group apart may wait for its threads
        os._exit(0 if finished else trainer.stop.exit_code)
    if not finished:
        console.print(
            f"Stopped at step {trainer.step} of {trainer.num_steps}; the checkpoint is written. "
            f"Go on with: swav train --resume {printable(folder)}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        return trainer.stop.exit_code
    seconds = f"{trainer.seconds:.0f} s, {trainer.seconds / trainer.num_steps:.3g} s a step"
    memory = peak_memory(trainer.device)
    console.print(f"Trained in {seconds}, in {memory:.0f} MiB of memory at most.", markup=False)
    _evaluate(console, trainer, folder)
    return 0


def _train(trainer: Trainer) -> bool:
    if not ranks.is_main():
        return trainer.train(None)
    config, loader = trainer.config, trainer.loader
    steps = trainer.num_steps, loader.steps
    machine.write(trainer.folder, trainer.device)
    tracker = trackers.start(config, trainer.folder, trainer.step, _tell)
    with Log(trainer.folder, trainer.step, *steps, config.log_every, tracker) as log:
        return trainer.train(log)


def _tell(line: str) -> None:
    Console(highlight=False).print(line, markup=False, soft_wrap=True)


def _where(trainer: Trainer) -> str:
    processes = ranks.count()
    return str(trainer.device) if processes == 1 else f"{processes} x {trainer.device.type}"


def _evaluate(console: Console, trainer: Trainer, folder: Path) -> None:
    started = time.perf_counter()
    config, dataset = trainer.config, trainer.dataset
    if not dataset.has_labels:
        note = f"{trainer.seconds:.0f} s in all. {dataset.note_on_bad_files()}"
        console.print(note.rstrip(), markup=False, soft_wrap=True)
        return
    dataset = dataclasses.replace(dataset, train=dataset.train.readable(config.workers))
    untrained = build_model(config, dataset.num_channels, trainer.device)
    model = trainer.model
    if config.shard:  # this process may hold a part of it
        model, _ = saved.trained(folder, config, dataset.num_channels, trainer.device)
    scores, features = evaluate(config, dataset, model, untrained)
    bad = dataset.note_on_bad_files()
    if bad:
        console.print(bad, markup=False, soft_wrap=True)
    seconds = trainer.seconds + time.perf_counter() - started
    sight = report.Sight.of(config, dataset, model, features[1])
    name, facts = printable(folder.resolve().name), machine.read(folder)
    view = report.View(name, config, read(folder), scores, seconds, facts, bad, sight)
    report.write(folder / report.NAME, [view])
    seconds = round(trainer.seconds + time.perf_counter() - started, 1)
    result = {**rounded(scores), "seconds": seconds}
    durable.write_text(folder / FILE, json.dumps(result, indent=1) + "\n")
    console.print(scores_table(config, scores))
    console.print(
        f"{seconds:.0f} s in all. Report: {printable(folder / report.NAME)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
