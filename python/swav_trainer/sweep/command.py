"""`swav sweep`: a grid of settings over seeds, compared in a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import UseAppendAction, arg

from swav_trainer import settings
from swav_trainer.errors import TrainerError, printable
from swav_trainer.sweep import cells, runs
from swav_trainer.sweep.tables import MARKDOWN, Sweep

Settings = Annotated[
    tuple[str, ...],
    UseAppendAction,
    arg(name="set", help="a setting and its values, as name=value,value; may be given again"),
]


def main(arguments: Sequence[str]) -> int:
    """Run `swav sweep` with its arguments; returns the exit code: 1 if a run failed."""
    return tyro.cli(sweep, args=list(arguments), prog="swav sweep")


def sweep(
    output: Path,
    preset: str = "digits",
    grid: Settings = (),
    ablation: str | None = None,
    seeds: str = "0,1,2",
    jobs: int = 1,
) -> int:
    """Run every combination of settings with every seed, and compare them in a table.

    Runs that are finished are not run again, those that were stopped go on.

    Args:
        output: folder of all runs, of sweep.json and of sweep.md.
        preset: a preset's name or a .toml file.
        grid: settings to vary.
        ablation: in place of --set built-in lists, as in queue,crops: assignment, codes,
            epsilon, iterations, queue, crops, prototypes, heads, method, or all.
        seeds: of the runs.
        jobs: runs at a time.
    """
    if jobs < 1:
        raise TrainerError(f"--jobs must be at least 1, got {jobs}")
    if ablation is not None and grid:
        raise TrainerError("--ablation is a list of settings: give no --set beside it")
    base = settings.load_preset(preset)
    groups = [cells.grid(base, grid)] if ablation is None else cells.ablation(base, ablation)
    numbers = _numbers(seeds)
    todo = runs.prepare(groups, numbers, output)
    console = Console(highlight=False)
    found = Sweep(output, preset, groups, numbers)
    with runs.Workers(jobs) as workers:
        for count, (run, result) in enumerate(workers.finish(todo), 1):
            found.results[run.folder] = result
            line = f"[{count}/{len(todo)}] {run.name}: {result}"
            console.print(line, markup=False, soft_wrap=True)
            found.write()  # after each: what is known stays, whatever becomes of the rest
    for group in groups:
        console.print(found.in_terminal(group))
    failed = [run for run in todo if not found.results[run.folder].scores]
    for run in failed:
        line = f"{run.name} failed: read {printable(run.folder / runs.LOG)}"
        console.print(line, markup=False, soft_wrap=True)
    line = f"Tables: {printable(output / MARKDOWN)}"
    console.print(line, markup=False, soft_wrap=True)
    return 1 if failed else 0


def _numbers(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise TrainerError(
            f"--seeds wants numbers, as in 0,1,2, got {printable(text)!r}"
        ) from error
    if len(set(seeds)) < len(seeds):
        raise TrainerError(f"--seeds names one twice: {text}")
    return seeds
