"""The table on the terminal, at most 120 columns wide."""

from typing import Any

RATIO_COLUMNS = ("official", "compile", "plain")
WIDTH, NAME_WIDTH = 120, 26
LEGEND = """\
ms: median wall clock a call; spread: distance of the quartiles / median
x NAME: time of NAME / this one's, median of the ratios within a round; the second x official is
  of the clock before it: process CPU time, or on a GPU replays of CUDA graphs
limit: share that the least work reaches of the tightest limit measured in this run
MB: peak memory above the inputs, outputs included
A figure is shown only after the result was right."""


def heading(row: dict[str, Any]) -> str:
    """Two lines above a case's rows: what it is, and the columns."""
    second = "graph" if row["device"] == "cuda" else "cpu"
    columns = "".join(f"{'x ' + name:>11}" for name in RATIO_COLUMNS)
    return (
        f"\n{row['op']} {row['shape']}, {row['device']}\n{'':<{NAME_WIDTH}}{'ms':>9}{'spread':>8}"
        f"{columns}{second + ' ms':>10}{'x official':>11}{'limit':>14}{'MB':>8}"
    )


def line(row: dict[str, Any]) -> str:
    """One contender: its figures, or why there are none."""
    name = f"  {row['name']} {row['variant']}".rstrip()
    if "not_run" in row:
        return f"{name:<{NAME_WIDTH}}  not run: {row['not_run']}"[:WIDTH]
    columns = "".join(f"{ratio(row['ratios'], other):>11}" for other in RATIO_COLUMNS)
    second, second_ratios = second_clock(row)
    return (
        f"{name:<{NAME_WIDTH}}{milliseconds(row['wall_ms']):>9}{row['spread']:>8.1%}{columns}"
        f"{milliseconds(second):>10}{ratio(second_ratios, 'official'):>11}{limit(row):>14}"
        f"{megabytes(row):>8}"
    )


def second_clock(row: dict[str, Any]) -> tuple[float | None, dict[str, float]]:
    """Milliseconds and ratios beside the wall clock: of the CUDA graph, or of CPU time."""
    if row["device"] == "cuda":
        return row.get("graph_wall_ms"), row.get("graph_ratios", {})
    return row["cpu_ms"], row["cpu_ratios"]


def milliseconds(value: float | None) -> str:
    """Three or four decimals below 100 ms, so that microseconds stay legible; else one."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1 else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def limit(row: dict[str, Any]) -> str:
    """The limit that binds and the share of it, such as `copy 71 %`."""
    shares = row.get("shares")
    if not shares:
        return "-"
    name = max(shares, key=shares.__getitem__)
    return f"{name} {100 * shares[name]:.0f} %"


def megabytes(row: dict[str, Any]) -> str:
    """Peak memory above the inputs, or a dash where it was not measured."""
    peak = row.get("peak_bytes")
    return "-" if peak is None else f"{peak / 1e6:.1f}"


def ratio(ratios: dict[str, float], baseline: str) -> str:
    """A ratio, or a dash where that baseline was not timed."""
    value = ratios.get(f"{baseline}/")
    return "-" if value is None else f"{value:.2f}"
