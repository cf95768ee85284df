"""Words and figures: summary, settings that differ, scores, alarms, machine."""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swav_trainer.alarm import GRACE
from swav_trainer.config import FIELDS, Config

if TYPE_CHECKING:
    from swav_trainer.report.view import View

METHODS = {"swav": "SwAV", "deepcluster": "DeepCluster-v2"}
KINDS = {"swav": "SwAV", "pixels": "raw pixels", "random": "same network, untrained"}
FIGURES = {
    "knn20": "20 neighbours",
    "linear": "linear probe",
    "shot1": "1 label a class",
    "shot10": "10 labels a class",
}
# what telemetry counts as parts of a step; the rest is optimiser and telemetry
PARTS = {"data": "waiting for crops", "network": "in the network", "loss": "in loss and Sinkhorn"}


def kinds(config: Config) -> dict[str, str]:
    """Titles of what an evaluation compares: the features that the run learned come first."""
    return {**KINDS, "swav": METHODS[config.method]}


def lead(view: "View") -> str:
    """One run in a sentence or two."""
    config, scores = view.config, view.scores
    images = "" if view.sight is None else f"{len(view.sight.dataset.train)} images, no labels, "
    text = (
        f"{images}{config.epochs} epochs, {config.num_prototypes} prototypes, "
        f"{view.seconds:.0f} seconds."
    )
    if not scores:
        last = view.steps[-1]["epoch"] if view.steps else 0
        return f"{text} Not evaluated: the run has come to epoch {last:g} of {config.epochs}."
    gain = scores["swav"]["knn20"] - scores["pixels"]["knn20"]
    held_out = "" if view.sight is None else f"{len(view.sight.dataset.test)} "
    return (
        f"{text} Nearest neighbours in the learned features name {scores['swav']['knn20']:.1f} % "
        f"of {held_out}held-out images right, {abs(gain):.1f} points "
        f"{'more' if gain >= 0 else 'fewer'} than in raw pixels."
    )


def alarms(view: "View") -> str:
    """What was raised, and what the reader should know."""
    notes = []
    for alarm in view.alarms:
        since = f"from step {alarm['step']} on" if alarm["step"] else "from the start"
        text = html.escape(f"{since}. {alarm['cause']} {alarm['remedy']}")
        notes.append(f'<p class="alarm"><b>{html.escape(alarm["diagnosis"])}</b> {text}</p>')
    if view.note:
        notes.append(f'<p class="alarm">{html.escape(view.note)}</p>')
    num_steps = int(view.steps[-1]["step"]) if view.steps else 0
    if num_steps < GRACE:
        notes.append(
            f'<p class="short">No verdict on collapse: {num_steps} steps are too few, the alarm '
            f"judges from step {GRACE} on.</p>"
        )
    return "".join(notes) or '<p class="fine">No alarm: the prototypes stayed in use.</p>'


def scores(view: "View") -> str:
    """The evaluation of one run."""
    if not view.scores:
        return "<p>Not evaluated yet.</p>"
    known = {kind: title for kind, title in kinds(view.config).items() if kind in view.scores}
    head = "".join(f"<th>{title}</th>" for title in FIGURES.values())
    rows = ""
    for kind, title in known.items():
        cells = "".join(
            _figure(view.scores[kind][figure], [view.scores[other][figure] for other in known])
            for figure in FIGURES
        )
        rows += f"<tr><th>{title}</th>{cells}</tr>"
    return f'<table class="scores"><tr><th>per cent right</th>{head}</tr>{rows}</table>'


def _figure(value: float, all_values: Sequence[float]) -> str:
    best = ' class="best"' if value == max(all_values) else ""
    return f"<td{best}>{value:.1f}</td>"


def side_by_side(views: Sequence["View"]) -> str:
    """Settings in which the runs differ, and what came of it."""
    head = "".join(
        f'<th><i class="key k{number % 8}"></i>{html.escape(view.name)}</th>'
        for number, view in enumerate(views)
    )
    rows = [f"<tr><th></th>{head}</tr>"]
    for name in differing(views):
        values = "".join(_cell(getattr(view.config, name)) for view in views)
        rows.append(f'<tr class="differs"><th>{name}</th>{values}</tr>')
    evaluated = [view.scores["swav"] for view in views if "swav" in view.scores]
    for figure, title in FIGURES.items():
        cells = "".join(
            _figure(view.scores["swav"][figure], [known[figure] for known in evaluated])
            if "swav" in view.scores
            else "<td>–</td>"
            for view in views
        )
        rows.append(f"<tr><th>{title}</th>{cells}</tr>")
    rows.append(_row("seconds", [f"{view.seconds:.0f}" for view in views]))
    for key in ("loss", "usage_entropy"):
        known = [view.steps[-1].get(key) if view.steps else None for view in views]
        rows.append(_row(f"last {key}", ["–" if x is None else f"{x:.3f}" for x in known]))
    rows.append(_row("alarms", [", ".join(a["diagnosis"] for a in v.alarms) or "none"
                                for v in views]))  # fmt: skip
    return f'<table class="side">{"".join(rows)}</table>'


def differing(views: Sequence["View"]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    return [
        field.name
        for field in FIELDS
        if any(
            getattr(view.config, field.name) != getattr(views[0].config, field.name)
            for view in views
        )
    ]


def settings(views: Sequence["View"]) -> str:
    """Every setting, those that differ marked."""
    marked = differing(views)
    rows = []
    for field in FIELDS:
        kind = ' class="differs"' if field.name in marked else ""
        cells = "".join(_cell(getattr(view.config, field.name)) for view in views)
        rows.append(f"<tr{kind}><th>{field.name}</th>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def machine(view: "View") -> str:
    """Hardware, and where the time went."""
    facts = [f"{html.escape(name)}: {html.escape(str(x))}" for name, x in view.machine.items()]
    if len(view.steps) > 1:
        first, last = view.steps[0], view.steps[-1]
        seconds, steps = last["seconds"] - first["seconds"], last["step"] - first["step"]
        facts.append(f"{1000 * seconds / max(1, steps):.0f} ms a step")
    facts += [
        f"{100 * share:.0f} % of the time {where}"
        for name, where in PARTS.items()
        if (share := _mean(step.get(f"{name}_share") for step in view.steps)) is not None
    ]
    if view.steps and view.steps[-1].get("peak_memory") is not None:
        facts.append(f"{view.steps[-1]['peak_memory']:.0f} MiB of memory at most")
    return "; ".join(facts) or "not written down"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if known else None


def _row(title: str, values: Sequence[str]) -> str:
    return f"<tr><th>{title}</th>{''.join(map(_cell, values))}</tr>"


def _cell(value: object) -> str:
    return f"<td>{html.escape(str(value))}</td>"
