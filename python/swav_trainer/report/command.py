"""`swav report`: the page of finished runs, of running ones, and of several side by side."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional

from swav_trainer import evaluation, log, machine, settings
from swav_trainer.errors import TrainerError, printable
from swav_trainer.evaluation import Scores, features_of
from swav_trainer.opened import open_run
from swav_trainer.report.page import write
from swav_trainer.report.tables import KINDS
from swav_trainer.report.view import NAME, Sight, View


def main(arguments: Sequence[str]) -> int:
    """Run `swav report` with its arguments; returns the exit code."""
    tyro.cli(report, args=list(arguments), prog="swav report")
    return 0


def report(runs: Positional[tuple[Path, ...]], output: Path | None = None) -> None:
    """Write one HTML page to read runs by; several are set side by side.

    Args:
        runs: folders of runs, finished or not.
        output: the page; by default report.html, in the run's folder if there is one run.
    """
    if not runs:
        raise TrainerError("swav report wants the folders of runs: swav report RUN [RUN ...]")
    views = [look(run) for run in runs]
    if max(Counter(view.name for view in views).values()) > 1:
        # told apart by the folders they are in
        paths = [run.resolve() for run in runs]
        common = os.path.commonpath([path.parent for path in paths])
        names = [printable(path.relative_to(common)) for path in paths]
        views = [dataclasses.replace(view, name=name) for view, name in zip(views, names)]
    file = output or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    write(file, views)
    print(f"Report: {printable(file)}")


def look(folder: Path) -> View:
    """Read a run from its folder.

    Raises:
        TrainerError: it is no folder of a run.
    """
    if not folder.is_dir():
        raise TrainerError(f"no folder {printable(folder)}: swav report wants folders of runs")
    config = settings.load(folder / settings.FILE)
    scores, seconds = _evaluation(folder / evaluation.FILE)
    lines = log.read(folder)
    if not scores:
        seconds = max((line.get("seconds", 0.0) for line in lines), default=0.0)
    name = printable(folder.resolve().name)
    view = View(name, config, lines, scores, seconds, machine.read(folder))
    try:
        config, dataset, model = open_run(folder, None)
    except TrainerError as error:  # a run that came from elsewhere, or has only begun
        return dataclasses.replace(view, note=f"No pictures: {error}.")
    features = features_of(config, dataset, model.backbone)[1]
    sight = Sight.of(config, dataset, model, features)
    return dataclasses.replace(view, note=dataset.note_on_bad_files(), sight=sight)


def _evaluation(path: Path) -> tuple[dict[str, Scores], float]:
    """Figures and seconds; nothing of a run that is not evaluated."""
    if not path.exists():
        return {}, 0.0
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {kind: result[kind] for kind in KINDS}, float(result["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(f"{printable(path)} is no evaluation of a run: {error!r}") from error
