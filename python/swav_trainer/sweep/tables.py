"""What came of a sweep: tables in the terminal and in Markdown, and all of it as JSON."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from swav_trainer import machine
from swav_trainer.report import FIGURES
from swav_trainer.sweep.cells import Cell, Group
from swav_trainer.sweep.runs import Result, folder_of

JSON, MARKDOWN = "sweep.json", "sweep.md"
NOTHING = "–"


class Sweep:
    """The results of a sweep so far.

    Args:
        output: its folder.
        preset: its name.
        groups: its tables.
        seeds: of its runs.
    """

    def __init__(
        self, output: Path, preset: str, groups: Sequence[Group], seeds: Sequence[int]
    ) -> None:
        self.output, self.preset, self.groups, self.seeds = output, preset, groups, seeds
        self.results: dict[Path, Result] = {}

    def of(self, cell: Cell) -> dict[int, Result]:
        """Results of a cell by seed, those that are there."""
        folders = {seed: folder_of(self.output, cell, seed) for seed in self.seeds}
        return {seed: self.results[x] for seed, x in folders.items() if x in self.results}

    def in_terminal(self, group: Group) -> Table:
        """A row a cell."""
        table = Table(title=None)
        for title in _head(group):
            table.add_column(title, overflow="fold")
        for cell in group.cells:
            table.add_row(*_row(cell, self.of(cell)))
        return table

    def write(self) -> None:
        """Write sweep.json and sweep.md."""
        facts = machine.describe(torch.device("cpu"))
        now = datetime.now(timezone.utc).date().isoformat()
        values = {
            "preset": self.preset,
            "seeds": list(self.seeds),
            "date": now,
            "machine": facts,
            "groups": [
                {"title": group.title, "cells": [self._as_json(cell) for cell in group.cells]}
                for group in self.groups
            ],
        }
        text = json.dumps(values, indent=1) + "\n"
        (self.output / JSON).write_text(text, encoding="utf-8")
        parts = [
            f"Preset {self.preset}, seeds {', '.join(map(str, self.seeds))}; per cent right, mean "
            f"± standard deviation over the seeds. {now}, {facts['processor']}, "
            f"{facts['threads']} of {facts['cores']} threads.\n"
        ]
        for group in self.groups:
            rows = [_row(cell, self.of(cell)) for cell in group.cells]
            head = _head(group)
            lines = [head, ["---"] + ["---:"] * (len(head) - 2) + ["---"], *rows]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
        (self.output / MARKDOWN).write_text("\n".join(parts), encoding="utf-8")

    def _as_json(self, cell: Cell) -> dict[str, Any]:
        runs = [
            {"seed": seed, "folder": f"{cell.folder}/seed-{seed}", **dataclasses.asdict(result)}
            for seed, result in self.of(cell).items()
        ]
        return {"label": cell.label, "runs": runs}


def _head(group: Group) -> list[str]:
    return [group.title, *FIGURES.values(), "seconds", "alarms, failures"]


def _row(cell: Cell, results: Mapping[int, Result]) -> list[str]:
    good = [result for result in results.values() if result.scores]
    figures = [_mean_and_sd([result.scores[name] for result in good]) for name in FIGURES]
    seconds = f"{statistics.mean(x.seconds for x in good):.0f}" if good else NOTHING
    notes = [alarm for result in good for alarm in result.alarms]
    words = [f"{name} ({notes.count(name)} of {len(good)})" for name in dict.fromkeys(notes)]
    if failures := len(results) - len(good):
        words.append(f"failed ({failures} of {len(results)})")
    return [cell.label, *figures, seconds, ", ".join(words) or "none"]


def _mean_and_sd(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"
