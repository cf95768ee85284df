"""`python -m benchmarks.readme`: writes the README's figures anew from `benchmarks/results/`."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import table

ROOT = Path(__file__).parents[1]
START, END = "<!-- figures -->", "<!-- /figures -->"
# what is worth a line there: the paper's sizes, a large one, and those that only a GPU holds
SHAPES = {
    "sinkhorn": ("256x3000", "4096x3000", "8192x65536"),
    "swav_loss": ("8x64x3000", "8x256x3000", "4x256x30000", "2x8192x65536"),
}
ALLOCATORS = {
    "D": "the C library's allocator as it comes",
    "W": "an allocator that keeps freed memory "
    "(`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`), "
    "which spares the others their page faults",
}
HEADER = (
    "| | ms | official / ours | torch.compile / ours | best plain torch / ours | of the limit "
    "| peak MB (official) |\n|---|---|---|---|---|---|---|"
)
LEGEND = (
    "Times to the official formulas in eager torch, to those under `torch.compile`, and to the "
    "best form plain torch allows, measured in turn in one process; the limit is the tightest of "
    "copy, matrix product and exponentials, measured in the same run; memory is above the inputs, "
    "results included."
)


def figures(results: Iterable[dict[str, Any]]) -> str:
    """Return the text between the markers: a table for each machine and setting."""
    parts = ["## Figures", "", LEGEND]
    for result in results:
        lines = list(_lines(result))
        if lines:
            parts += ["", about(result), "", HEADER, *lines]
    return "\n".join(parts)


def about(result: dict[str, Any]) -> str:
    """One line that says where and when a result was measured."""
    machine = result["machine"]
    where = machine["gpu"] or (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, "
        f"{ALLOCATORS.get(machine['allocator'], machine['allocator'])}"
    )
    commit = (result["commit"] or "unknown")[:10]
    return f"{where}; torch {result['versions']['torch']}, commit {commit}, {result['date']}:"


def insert(text: str, block: str) -> str:
    """Replace what stands between the markers; the second one is made if it is missing.

    Raises:
        ValueError: the first marker is missing.
    """
    before, start, rest = text.partition(START)
    if not start:
        raise ValueError(f"the marker {START} is missing")
    _, end, after = rest.partition(END)
    return f"{before}{START}\n{block}\n{END}{after if end else rest}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the README; 2 if there is nothing to write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    paths = sorted(options.results.glob("*.json"))
    if not paths:
        print(f"no results in {options.results}: python -m benchmarks --json FILE makes them")
        return 2
    block = figures(json.loads(path.read_text()) for path in paths)
    options.readme.write_text(insert(options.readme.read_text(), block))
    return 0


def _lines(result: dict[str, Any]) -> Iterable[str]:
    for op, shapes in SHAPES.items():
        for shape in shapes:
            rows = [row for row in result["results"] if (row["op"], row["shape"]) == (op, shape)]
            timed = [row for row in rows if "not_run" not in row]
            ours = [row for row in timed if row["is_ours"] and row["name"] != "reference"]
            official = next((row for row in timed if row["name"] == "official"), {})
            for variant in dict.fromkeys(row["variant"] for row in ours):
                fastest = min(
                    (row for row in ours if row["variant"] == variant),
                    key=lambda row: row["wall_ms"],
                )
                yield _line(fastest, official)


def _line(row: dict[str, Any], official: dict[str, Any]) -> str:
    cells = (
        f"`{row['op']}` {row['shape']}, {row['variant']} ({row['name']})",
        table.milliseconds(row["wall_ms"]),
        *(table.ratio(row["ratios"], name) for name in table.RATIO_COLUMNS),
        table.limit(row),
        f"{table.megabytes(row)} ({table.megabytes(official)})",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
