"""Curves as SVG: a panel a quantity, a line a run."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from swav_trainer.alarm import COLLAPSED_USAGE, LEAST_FIT
from swav_trainer.report.view import View

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 26, 30  # margins
MOST_POINTS = 300  # of a line
NUM_COLOURS = 8  # of the style sheet


@dataclass(frozen=True)
class Panel:
    """A quantity of metrics.jsonl."""

    key: str
    title: str
    from_zero_to_one: bool = True
    mark: str = ""  # what the dotted line means


PANELS = (
    Panel("loss", "loss", False, "ln K: nothing learned"),
    Panel("usage_entropy", "usage of prototypes", mark="below: collapse"),
    Panel("code_entropy", "code entropy"),
    Panel("view_agreement", "view agreement"),
    Panel("knn20", "20 neighbours, per cent right", False),
    Panel("feature_rank", "feature rank", False),
    Panel("dead_prototypes", "dead prototypes"),
    Panel("duplicate_prototypes", "duplicate prototypes"),
    Panel("queue_fit", "fit of the queue's oldest rows", False, mark="below: stale"),
    Panel("data_share", "share of time waiting for crops"),
    Panel("loss_share", "share of time in loss and Sinkhorn"),
)

Line = list[tuple[float, float]]


def panels(views: Sequence[View]) -> str:
    """Every quantity that some run has written down."""
    drawn = []
    for panel in PANELS:
        lines = [_line(view, panel.key) for view in views]
        if any(lines):
            drawn.append(_draw(panel, views, lines))
    return "".join(drawn) or "<p>No step was written down yet.</p>"


def _line(view: View, key: str) -> Line:
    """Epochs and values, a mean for each stretch of steps where they are many."""
    known = [(step["epoch"], step[key]) for step in view.lines if step.get(key) is not None]
    each = max(1, math.ceil(len(known) / MOST_POINTS))
    stretches = (known[i : i + each] for i in range(0, len(known), each))
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in stretches
    ]


def _draw(panel: Panel, views: Sequence[View], lines: Sequence[Line]) -> str:
    marks = _marks(panel, views)
    xs = [x for line in lines for x, _ in line]
    ys = [y for line in lines for _, y in line] + marks
    low, high = (0.0, 1.0) if panel.from_zero_to_one else (min(0.0, *ys), 1.05 * max(*ys, 1e-9))
    right = max(xs)

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / right
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<text class="title" x="{LEFT}" y="14">{panel.title}</text>']
    for value in _ticks(low, high):
        (_, y) = place(0, value).split(",")
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 5}" y="{y}" dy="4">{value:g}</text>')
    for value in _ticks(0, right):
        (x, _) = place(value, low).split(",")
        parts.append(f'<text class="middle" x="{x}" y="{HEIGHT - BOTTOM + 14}">{value:g}</text>')
    parts.append(f'<text class="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}">epoch</text>')
    for value in marks:
        (_, y) = place(0, value).split(",")
        parts.append(f'<path class="mark" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
    if marks:
        (_, y) = place(0, max(marks)).split(",")
        parts.append(f'<text class="end" x="{WIDTH - RIGHT}" y="{y}" dy="-4">{panel.mark}</text>')
    for number, (view, line) in enumerate(zip(views, lines, strict=True)):
        if line:
            points = " ".join(place(x, y) for x, y in line)
            title = html.escape(f"{view.name}: {line[-1][1]:.4g} at last")
            colour = number % NUM_COLOURS
            parts.append(f'<g class="c{colour}"><title>{title}</title>')
            shape = f'<polyline points="{points}"/>'
            if len(line) == 1:
                x, y = place(*line[0]).split(",")
                shape = f'<circle cx="{x}" cy="{y}" r="3"/>'
            parts.append(f"{shape}</g>")
    return (
        f'<svg role="img" aria-label="{panel.title} over the epochs" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
    )


def _marks(panel: Panel, views: Sequence[View]) -> list[float]:
    if panel.key == "loss":
        return sorted({math.log(view.config.num_prototypes) for view in views})
    return {"usage_entropy": [COLLAPSED_USAGE], "queue_fit": [LEAST_FIT]}.get(panel.key, [])


def _ticks(low: float, high: float) -> list[float]:
    """Some five round numbers from low to high."""
    raw = (high - low) / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
