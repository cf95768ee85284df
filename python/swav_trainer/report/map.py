"""The map of the features: points in two dimensions, drawn and moved by map.js."""

import hashlib
import html
import json

import numpy as np
import torch

from swav_trainer.config import Config
from swav_trainer.errors import printable
from swav_trainer.report.images import address, sheet, thumbnails
from swav_trainer.report.view import Sight

TILE = 36  # pixels of a picture in the sheet
SIDE = 1000  # of the square in which the points lie
FEWEST = 4  # points of a map


def draw(config: Config, sight: Sight, most: int, sheets: dict[str, str]) -> str:
    """The held-out images, a colour a class; adds their pictures to `sheets` by name.

    Args:
        config: the run's.
        sight: its images and features.
        most: points.
        sheets: data addresses that the maps of a page share.
    """
    features = torch.nn.functional.normalize(sight.features[:most], dim=1)
    count = len(features)
    if count < FEWEST:
        return "<p>Too few held-out images for a map.</p>"
    test = sight.dataset.test
    whole, columns = sheet(thumbnails(test, range(count), TILE, config))
    name = hashlib.sha256(whole.tobytes()).hexdigest()[:12]
    if name not in sheets:
        sheets[name] = address(whole)
    values = {
        "points": _points(features.numpy()).flatten().tolist(),
        "labels": test.labels[:count].tolist() if sight.is_labelled else [0] * count,
        "classes": list(sight.dataset.classes) if sight.is_labelled else [""],
        "names": _names(sight, count),
        "sheet": name,
        "columns": columns,
        "lines": -(-count // columns),
        "side": SIDE,
    }
    label = html.escape(f"map of the features of {count} held-out images", quote=True)
    return (
        f'<div class="map"><canvas role="img" aria-label="{label}"></canvas>'
        '<div class="tip" hidden><span class="picture"></span><span class="words"></span></div>'
        '<button type="button">whole map</button>'
        f'<script type="application/json">{to_script(values)}</script></div>'
    )


def to_script(values: object) -> str:
    """JSON that no name from disk can break out of."""
    text = json.dumps(values, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _points(features: np.ndarray) -> np.ndarray:
    """[M, dim] -> [M, 2] whole numbers in the square."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, metric="cosine").fit_transform(
        features
    )
    low, high = points.min(0), points.max(0)
    scale = SIDE / max(float((high - low).max()), 1e-9)
    centre = (low + high) / 2
    return np.rint((points - centre) * scale + SIDE / 2).astype(int)


def _names(sight: Sight, count: int) -> list[str]:
    images = sight.dataset.test.images
    if isinstance(images, torch.Tensor):
        return []
    return [printable(path.name) for path in images.paths[:count]]
