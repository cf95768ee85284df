"""How good are the features: neighbours, a linear probe, and a few labels a class."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from swav_trainer import ranks, seeds
from swav_trainer.config import Config
from swav_trainer.data import Dataset, Part
from swav_trainer.loader import Loader
from swav_trainer.model import Model
from swav_trainer.protocols import neighbours

NEIGHBOURS = 20
DRAWS = 5
FILE = "evaluation.json"  # in the folder of a run
MOST_PIXELS = 32  # side of the image that raw pixels are taken from
BATCH = 500

Scores = dict[str, float]
Features = tuple[Tensor, Tensor]  # of training and held-out images, [N, dim]


def evaluate(
    config: Config, dataset: Dataset, trained: Model, untrained: Model
) -> tuple[dict[str, Scores], Features]:
    """Score the trained network, raw pixels and the untrained network.

    Returns:
        {"swav": {"knn20": ..., "linear": ..., "shot1": ..., "shot10": ...}, "pixels": ...,
        "random": ...} in per cent, and the trained network's features.
    """
    labels = dataset.train.labels, dataset.test.labels
    features = features_of(config, dataset, trained.backbone)
    kinds = {
        "swav": features,
        "pixels": features_of(config, dataset, _pixels),
        "random": features_of(config, dataset, untrained.eval().backbone),
    }
    return {name: score(kind, labels, config.seed) for name, kind in kinds.items()}, features


def rounded(scores: dict[str, Scores]) -> dict[str, Scores]:
    """Figures as they are written to files."""
    return {
        kind: {name: round(value, 2) for name, value in figures.items()}
        for kind, figures in scores.items()
    }


def features_of(config: Config, dataset: Dataset, backbone: Callable[[Tensor], Tensor]) -> Features:
    """Features of the whole images of both parts, float32 on the CPU."""
    train, test = (part_features(config, part, backbone) for part in (dataset.train, dataset.test))
    return train, test


@torch.no_grad()
def part_features(
    config: Config,
    part: Part,
    backbone: Callable[[Tensor], Tensor],
    rows: range | None = None,
) -> Tensor:
    """Features of the whole images of a part, or of these rows of it, float32 on the CPU."""
    if isinstance(backbone, torch.nn.Module):
        backbone.eval()
        like = next(backbone.parameters())
    else:
        like = torch.empty(0)
    rows = range(len(part)) if rows is None else rows
    # processes share training batches, of which there are none here
    whole = dataclasses.replace(config, batch_size=2 * ranks.count(), effective_batch=0)
    loader = Loader(part, whole)
    batches = []
    for start in range(0, len(rows), BATCH):
        images = loader.whole(rows[start : start + BATCH], config.eval_size).to(like)
        images = images.contiguous(memory_format=torch.channels_last)
        batches.append(backbone(images).float().cpu())
    return torch.cat(batches)


def _pixels(images: Tensor) -> Tensor:
    if images.shape[-1] > MOST_PIXELS:
        images = functional.interpolate(images, size=(MOST_PIXELS, MOST_PIXELS), mode="area")
    return images.flatten(1)


def score(features: Features, labels: tuple[Tensor, Tensor], seed: int) -> Scores:
    """All four figures of one kind of features, in per cent."""
    return {
        "knn20": knn(features, labels),
        "linear": linear(features, labels),
        "shot1": few_labels(features, labels, 1, seed),
        "shot10": few_labels(features, labels, 10, seed),
    }


def knn(features: Features, labels: tuple[Tensor, Tensor]) -> float:
    """Weighted vote of the 20 nearest training images by cosine."""
    num_classes = int(labels[0].max()) + 1
    (train, test), (train_labels, test_labels) = features, labels
    figures = neighbours.accuracy(
        (train, train_labels), (test, test_labels), num_classes, (NEIGHBOURS,)
    )
    return figures[NEIGHBOURS]


def linear(features: Features, labels: tuple[Tensor, Tensor]) -> float:
    """Logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression

    mean, std = features[0].mean(0), features[0].std(0) + 1e-4
    train, test = (((part - mean) / std).numpy() for part in features)
    probe = LogisticRegression(C=0.1, max_iter=300).fit(train, labels[0].numpy())
    return 100 * float(probe.score(test, labels[1].numpy()))


def few_labels(features: Features, labels: tuple[Tensor, Tensor], count: int, seed: int) -> float:
    """Nearest class mean of `count` labelled images a class, the mean over five draws."""
    centre = features[0].mean(0)
    train, test = (functional.normalize(part - centre, dim=1) for part in features)
    rng = np.random.default_rng(seeds.number(seed, count))
    classes = labels[0].unique()
    accuracies = []
    for _ in range(DRAWS):
        means = []
        for label in classes:
            rows = torch.nonzero(labels[0] == label).flatten().numpy()
            drawn = rng.choice(rows, min(count, len(rows)), replace=False)
            means.append(functional.normalize(train[torch.from_numpy(drawn)].mean(0), dim=0))
        nearest = classes[(test @ torch.stack(means).T).argmax(1)]
        accuracies.append(float((nearest == labels[1]).float().mean()))
    return 100 * sum(accuracies) / DRAWS
