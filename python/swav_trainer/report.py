"""`report.html`: one self-contained page to read a run by."""

import base64
import html
import io
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from swav_trainer import log
from swav_trainer.alarm import COLLAPSED_USAGE, GRACE
from swav_trainer.config import FIELDS, Config
from swav_trainer.data import Dataset
from swav_trainer.evaluation import Scores, features_of
from swav_trainer.loader import Loader
from swav_trainer.model import Model, Projection

GALLERY_ROWS, GALLERY_IMAGES = 18, 10
THUMBNAIL = 48  # pixels
MOST_POINTS = 2000  # of the map
KINDS = {"swav": "SwAV", "pixels": "raw pixels", "random": "same network, untrained"}
FIGURES = {
    "knn20": "20 neighbours",
    "linear": "linear probe",
    "shot1": "1 label a class",
    "shot10": "10 labels a class",
}
MOST_NAMES = 20  # classes that are named on the map
BLUE, RED, GREY, OCHRE = "#2b6cb0", "#c53030", "#718096", "#b7791f"
CURVES = (
    ("usage_entropy", "usage of prototypes", BLUE),
    ("code_entropy", "code entropy", GREY),
    ("view_agreement", "view agreement", OCHRE),
)


def write(
    folder: Path,
    config: Config,
    dataset: Dataset,
    model: Model,
    features: Tensor,
    scores: dict[str, Scores],
    seconds: float,
    bad_files: str,
) -> None:
    """Write the page of a finished run; `features` are those of the held-out images."""
    lines = log.read(folder)
    alarms = [line["alarm"] for line in lines if "alarm" in line]
    steps = [line for line in lines if "alarm" not in line]
    page = Template(resources.files("swav_trainer").joinpath("report.html").read_text("utf-8"))
    text = page.substitute(
        title=html.escape(f"SwAV on {dataset.name}"),
        summary=html.escape(_summary(config, dataset, scores, seconds)),
        alarms=_alarms(alarms, bad_files, int(steps[-1]["step"]) if steps else 0),
        table=_table(scores),
        curves=_curves(steps, config.num_prototypes),
        gallery=_gallery(config, dataset, model),
        map=_map(features, dataset),
        settings=_settings(config),
    )
    (folder / "report.html").write_text(text, encoding="utf-8")


def _summary(config: Config, dataset: Dataset, scores: dict[str, Scores], seconds: float) -> str:
    gain = scores["swav"]["knn20"] - scores["pixels"]["knn20"]
    return (
        f"{len(dataset.train)} images without labels, {config.epochs} epochs, "
        f"{config.num_prototypes} prototypes, {seconds:.0f} seconds. Nearest neighbours in the "
        f"learned features name {scores['swav']['knn20']:.1f} % of {len(dataset.test)} held-out "
        f"images right, {abs(gain):.1f} points {'more' if gain >= 0 else 'fewer'} than in raw "
        "pixels."
    )


def _settings(config: Config) -> str:
    values = {field.name: html.escape(str(getattr(config, field.name))) for field in FIELDS}
    return "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in values.items())


def _alarms(alarms: Sequence[dict[str, Any]], bad_files: str, num_steps: int) -> str:
    notes = [
        f'<p class="alarm"><b>{html.escape(a["diagnosis"])}</b> from step {a["step"]} on. '
        f"{html.escape(a['cause'])} {html.escape(a['remedy'])}</p>"
        for a in alarms
    ]
    if bad_files:
        notes.append(f'<p class="alarm">{html.escape(bad_files)}</p>')
    if num_steps < GRACE:
        notes.append(
            f'<p class="short">No verdict on collapse: {num_steps} steps are too few, the alarm '
            f"judges from step {GRACE} on.</p>"
        )
    return "".join(notes) or '<p class="fine">No alarm: the prototypes stayed in use.</p>'


def _table(scores: dict[str, Scores]) -> str:
    head = "".join(f"<th>{title}</th>" for title in FIGURES.values())
    rows = ""
    for kind, title in KINDS.items():
        cells = ""
        for figure in FIGURES:
            value = scores[kind][figure]
            best = value == max(scores[other][figure] for other in KINDS)
            cells += f"<td{' class=best' if best else ''}>{value:.1f}</td>"
        rows += f"<tr><th>{title}</th>{cells}</tr>"
    return f"<table class=scores><tr><th>per cent right</th>{head}</tr>{rows}</table>"


def _curves(steps: Sequence[dict[str, Any]], num_prototypes: int) -> str:
    epochs = [line["epoch"] for line in steps]
    loss, axes = _figure("loss")
    axes.plot(epochs, [line["loss"] for line in steps], color=BLUE, lw=1.2)
    _mark(axes, math.log(num_prototypes), "ln K: nothing learned", GREY)
    telemetry, axes = _figure("telemetry")
    for key, title, colour in CURVES:
        values = [math.nan if line[key] is None else line[key] for line in steps]
        axes.plot(epochs, values, label=title, color=colour, lw=1.2)
    _mark(axes, COLLAPSED_USAGE, "usage below: collapse", RED)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return _svg(loss, "loss over the epochs") + _svg(telemetry, "telemetry over the epochs")


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="epoch")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _mark(axes: Axes, value: float, text: str, colour: str) -> None:
    """A dotted line at a value that means something."""
    axes.axhline(value, color=colour, ls=":", lw=1)
    axes.annotate(
        text, (1, value), color=colour, fontsize=8, xycoords=("axes fraction", "data"), ha="right",
        va="bottom",
    )  # fmt: skip


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


@torch.no_grad()
def _gallery(config: Config, dataset: Dataset, model: Model) -> str:
    """For the best-filled prototypes the training images nearest to each."""
    projected = features_of(config, dataset, Projection(model))[0]
    similarity = projected @ model.prototypes.weight.float().cpu().T  # [N, K]
    nearest = similarity.argmax(1)
    fill = torch.bincount(nearest, minlength=similarity.shape[1])
    loader = Loader(dataset.train, config)
    rows = []
    for prototype in fill.argsort(descending=True)[:GALLERY_ROWS].tolist():
        if fill[prototype] == 0:
            break
        column = torch.where(nearest == prototype, similarity[:, prototype], -2)
        count = min(GALLERY_IMAGES, int(fill[prototype]))
        chosen = column.topk(count).indices.tolist()
        labels = dataset.train.labels[nearest == prototype]
        common = int(labels.mode().values)
        purity = float((labels == common).float().mean())
        images = "".join(_thumbnail(loader, row, config.eval_size, dataset) for row in chosen)
        name = html.escape(dataset.classes[common])
        rows.append(
            f"<div class=prototype><div class=images>{images}</div>"
            f"<p>{int(fill[prototype])} images, {100 * purity:.0f} % are {name}</p></div>"
        )
    return "".join(rows)


def _thumbnail(loader: Loader, row: int, size: int, dataset: Dataset) -> str:
    image = loader.whole(range(row, row + 1), min(size, 2 * THUMBNAIL))[0]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    label = html.escape(dataset.classes[int(dataset.train.labels[row])], quote=True)
    return f'<img alt="{label}" title="{label}" src="{_png(pixels)}">'


def _png(pixels: np.ndarray) -> str:
    """[H, W, 1 or 3] uint8 RGB as a data address."""
    import cv2

    image = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", image)
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def _map(features: Tensor, dataset: Dataset) -> str:
    """The held-out images in two dimensions, a colour a class."""
    from sklearn.manifold import TSNE

    features = torch.nn.functional.normalize(features[:MOST_POINTS], dim=1)
    labels = dataset.test.labels[:MOST_POINTS]
    if len(features) < 4:
        return "<p>Too few held-out images for a map.</p>"
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, metric="cosine").fit_transform(
        features.numpy()
    )
    figure = Figure(figsize=(7, 5), layout="constrained", dpi=150)
    axes = figure.subplots()
    colours = mpl.colormaps["tab10" if len(dataset.classes) <= 10 else "tab20"]
    for label, name in enumerate(dataset.classes):
        rows = (labels == label).numpy()
        axes.scatter(*points[rows].T, s=9, lw=0, color=colours(label % colours.N), rasterized=True)
        if rows.any() and len(dataset.classes) <= MOST_NAMES:
            axes.annotate(
                name[:20].replace("$", r"\$"), np.median(points[rows], 0), fontsize=11,
                fontweight="bold", ha="center", va="center",
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
            )  # fmt: skip
    axes.set_axis_off()
    return _svg(figure, "map of the features of the held-out images")
