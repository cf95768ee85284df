"""The pictures of the page: bars against baselines, a roofline, time and memory against K."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a backend
from matplotlib.axes import Axes

Row = dict[str, Any]
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
DOTS_PER_INCH = 110


def write(rows: Sequence[Row], limits: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Write the pictures that these rows of one device allow; return (title, file name)."""
    device = rows[0]["device"]
    written = []
    with plt.rc_context(STYLE):
        for op in dict.fromkeys(row["op"] for row in rows):
            chosen = [row for row in rows if row["op"] == op]
            paper = [row for row in chosen if row["group"] in ("paper", "large")]
            sweep = [row for row in chosen if row["group"] == "sweep"]
            if paper:
                written.append(_save(folder, f"{op}_{device}_bars", bars(paper)))
            if sweep:
                written.append(_save(folder, f"{op}_{device}_sweep", against_prototypes(sweep)))
        ours = [
            row for row in rows
            if row["is_ours"] and row["shares"] and row["name"] != "reference"
        ]  # fmt: skip
        if ours and limits:
            written.append(_save(folder, f"roofline_{device}", roofline(ours, limits)))
    return written


def bars(rows: Sequence[Row]) -> str:
    """Speed-up over the official code of every contender, shape by shape."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = plt.subplots(
        1, len(shapes), figsize=(2.6 * len(shapes) + 1.5, 3.4), sharey=True, squeeze=False
    )
    labels = list(dict.fromkeys(map(_label, rows)))[::-1]
    for axis, shape in zip(axes[0], shapes, strict=True):
        at = {_label(row): row for row in rows if row["shape"] == shape}
        found = [(y, at[label]) for y, label in enumerate(labels) if label in at]
        values = [row["ratios"].get("official/", float("nan")) for _, row in found]
        colours = ["tab:blue" if row["is_ours"] else "lightgrey" for _, row in found]
        places = axis.barh([y for y, _ in found], values, color=colours)
        axis.bar_label(places, fmt="%.2g", padding=2, fontsize=7)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set(title=shape, xlabel="official time / its time")
        axis.margins(x=0.15)
    axes[0][0].set_yticks(range(len(labels)), labels)
    figure.tight_layout()
    return f"{rows[0]['op']}: speed against the official code"


def roofline(rows: Sequence[Row], limits: dict[str, Any]) -> str:
    """FLOP/s against FLOPs a byte, under the copy bandwidths and product rates of the run."""
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    intensities = [row["flops"] / row["bytes"] for row in rows]
    low, high = min(intensities) / 3, max(intensities) * 3
    copies = {int(size): rate for size, rate in limits["copy_gb_s"].items()}
    for size in (min(copies), max(copies)):
        axis.plot(
            [low, high], [low * copies[size], high * copies[size]], linestyle="--", linewidth=0.8,
            label=f"copy of {size / 2**20:.3g} MiB, {copies[size]:.0f} GB/s",
        )  # fmt: skip
    products = limits["product_gflop_s"]
    for dtype in sorted({name.split()[0] for name in products}):
        rate = max(value for name, value in products.items() if name.startswith(dtype))
        axis.plot([low, high], [rate, rate], linewidth=0.8, label=f"{dtype} product, {rate:.0f}")
    for op in dict.fromkeys(row["op"] for row in rows):
        chosen = [row for row in rows if row["op"] == op]
        axis.scatter(
            [row["flops"] / row["bytes"] for row in chosen],
            [row["flops"] / row["wall_ms"] / 1e6 for row in chosen],
            s=16, label=op,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="least FLOPs a byte", ylabel="GFLOP/s")
    axis.legend(fontsize=7)
    figure.tight_layout()
    return "Roofline: every variant of ours; cases in a cache rise above the copy from memory"


def against_prototypes(rows: Sequence[Row]) -> str:
    """Time and peak memory against K."""
    figure, (times, memories) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for label, line in _lines(rows):
        style = {"marker": "o", "markersize": 3, "label": label}
        style |= {} if line[0]["is_ours"] else {"linestyle": "--", "linewidth": 0.9}
        _plot(times, line, [row["wall_ms"] for row in line], style)
        if all(row.get("peak_bytes") for row in line):
            _plot(memories, line, [row["peak_bytes"] / 1e6 for row in line], style)
    times.set(xlabel="prototypes", ylabel="ms")
    memories.set(xlabel="prototypes", ylabel="MB above the inputs")
    times.legend(fontsize=7)
    figure.tight_layout()
    return f"{rows[0]['op']}: time and memory against the number of prototypes"


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for label in dict.fromkeys(map(_label, rows)):
        yield label, [row for row in rows if _label(row) == label]


def _plot(axis: Axes, line: list[Row], values: list[float], style: dict[str, Any]) -> None:
    axis.loglog([row["num_prototypes"] for row in line], values, **style)


def _label(row: Row) -> str:
    return f"{row['name']} {row['variant']}".strip()


def _save(folder: Path, name: str, title: str) -> tuple[str, str]:
    plt.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
    plt.close()
    return title, f"{name}.png"
