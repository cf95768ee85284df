"""A result as a Markdown page with its pictures; `python -m benchmarks.page FILE DIR`."""

import argparse
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import readme, table

NAME = "benchmarks.md"
COLUMNS = ("", "ms", "spread", *(f"x {name}" for name in table.RATIO_COLUMNS),
           "CPU or graph ms", "x official", "limit", "MB")  # fmt: skip


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write the page, and pictures where matplotlib is installed; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Benchmarks", "", readme.about(result), "", "```text", table.LEGEND, "```"]
    if result["interrupted"]:
        parts += ["", "The run was interrupted: these are the results so far."]
    timed = [row for row in result["results"] if "not_run" not in row]
    if importlib.util.find_spec("matplotlib") is None:
        parts += ["", "No pictures: matplotlib is not installed."]
    else:
        from benchmarks import plots

        for device in dict.fromkeys(row["device"] for row in timed):
            rows = [row for row in timed if row["device"] == device]
            for title, name in plots.write(rows, result["limits"].get(device), folder):
                parts += ["", f"## {title}", "", f"![{title}]({name})"]
    parts += ["", "## All figures", *_tables(result["results"])]
    path = folder / NAME
    path.write_text("\n".join(parts) + "\n")
    return path


def _tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    for case in dict.fromkeys((row["op"], row["shape"], row["device"]) for row in rows):
        yield f"\n### {case[0]} {case[1]}, {case[2]}\n"
        yield f"| {' | '.join(COLUMNS)} |"
        yield "|---" * len(COLUMNS) + "|"
        for row in rows:
            if (row["op"], row["shape"], row["device"]) == case:
                yield f"| {' | '.join(_cells(row))} |"


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['name']} {row['variant']}".strip()
    if "not_run" in row:
        yield f"not run: {row['not_run']}"
        yield from ("",) * (len(COLUMNS) - 2)
        return
    yield table.milliseconds(row["wall_ms"])
    yield f"{row['spread']:.1%}"
    for other in table.RATIO_COLUMNS:
        yield table.ratio(row["ratios"], other)
    second, second_ratios = table.second_clock(row)
    yield table.milliseconds(second)
    yield table.ratio(second_ratios, "official")
    yield table.limit(row)
    yield table.megabytes(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("file", type=Path, help="that --json wrote")
    parser.add_argument("folder", type=Path, help="to write into")
    options = parser.parse_args()
    print(write(json.loads(options.file.read_text()), options.folder))
