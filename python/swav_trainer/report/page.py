"""The page put together: one code path for one run and for many."""

import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from swav_trainer import durable
from swav_trainer.report import curves, gallery, map, tables
from swav_trainer.report.view import View

# pictures of all runs together: they are most of a page
MOST_POINTS, POINTS_IN_ALL = 2000, 6000
MOST_ROWS, ROWS_IN_ALL = 18, 54


def write(file: Path, views: Sequence[View]) -> None:
    """Write the page of these runs.

    Raises:
        TrainerError: the file cannot be written.
    """
    sheets: dict[str, str] = {}
    runs = "".join(_run(view, len(views), sheets) for view in views)
    alone = len(views) == 1
    if alone:
        title = f"{tables.METHODS[views[0].config.method]} on {_data(views[0])}"
        top = f'<p class="lead">{html.escape(tables.lead(views[0]))}</p>'
    else:
        methods = dict.fromkeys(tables.METHODS[view.config.method] for view in views)
        title = f"{len(views)} runs of {' and '.join(methods)}"
        top = f"<h2>Side by side</h2><section>{tables.side_by_side(views)}</section>"
    text = Template(_asset("page.html")).substitute(
        title=html.escape(title),
        style=_asset("page.css"),
        top=top,
        legend="" if alone else _legend(views),
        curves=curves.panels(views),
        runs=runs,
        settings=tables.settings(views),
        sheets=map.to_script(sheets),
        script=_asset("map.js"),
    )
    durable.write_text(file, text)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _data(view: View) -> str:
    return view.config.data if view.sight is None else view.sight.dataset.name


def _legend(views: Sequence[View]) -> str:
    keys = "".join(
        f'<span><i class="key k{i % curves.NUM_COLOURS}"></i>{html.escape(view.name)}</span>'
        for i, view in enumerate(views)
    )
    return f'<p class="legend">{keys}</p>'


def _run(view: View, count: int, sheets: dict[str, str]) -> str:
    """The part of the page that is one run's."""
    parts = []
    if count > 1:
        parts.append(f'<h2 class="run">{html.escape(view.name)}</h2>')
        parts.append(f'<p class="lead">{html.escape(tables.lead(view))}</p>')
    parts.append(tables.alarms(view))
    parts.append(_section("What the features are worth", tables.scores(view)))
    config, sight = view.config, view.sight
    if sight is not None:
        parts.append(
            _section(
                "Prototypes",
                gallery.prototypes(config, sight, max(4, min(MOST_ROWS, ROWS_IN_ALL // count))),
                "The best-filled prototypes, each with the training images nearest to it. "
                "No label was seen in training.",
            )
        )
        parts.append(
            _section(
                "Map of the features",
                map.draw(config, sight, min(MOST_POINTS, POINTS_IN_ALL // count), sheets),
                "Held-out images in two dimensions (t-SNE): near means alike. Colours are labels "
                "the training never saw. Point at a dot or tap it to see its image; wheel or "
                "pinch to zoom, drag to move.",
            )
        )
        parts.append(_section("Crops as the network sees them", gallery.crops(config, sight)))
    parts.append(_section("Machine and time", f"<p>{tables.machine(view)}</p>"))
    return "".join(parts)


def _section(title: str, content: str, hint: str = "") -> str:
    words = f'<p class="hint">{hint}</p>' if hint else ""
    return f"<h3>{title}</h3>{words}<section>{content}</section>"
