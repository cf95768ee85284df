"""A classifier trained on crops: on the frozen network, or with it on a share of the labels.

Source: Caron et al. 2020 (arXiv 2006.09882), sections 4.1 and appendix, and its released settings.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from swav_trainer import seeds
from swav_trainer.config import Config
from swav_trainer.data import Dataset, Part
from swav_trainer.errors import TrainerError
from swav_trainer.evaluation import part_features
from swav_trainer.model import Model
from swav_trainer.protocols import crops, figures, subset

BATCH = 256
MOMENTUM = 0.9
INITIAL_STD = 0.01  # of the classifier's weights
FEW = 3.0  # per cent of the labels up to which the settings for 1 % hold, else those for 10 %


def cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def two_steps(progress: float) -> float:
    """1, then 0.2 and 0.04: after 12 and 16 of 20 epochs."""
    return 0.2 ** ((progress >= 12 / 20) + (progress >= 16 / 20))


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; the learning rates are for batches of 256 images."""

    epochs: int
    rate: float
    network_rate: float  # 0 freezes the network
    weight_decay: float
    schedule: Callable[[float], float]


OFFICIAL_LINEAR = Recipe(100, 0.3, 0.0, 1e-6, cosine)
ONE_PERCENT = Recipe(20, 5.0, 0.02, 0.0, two_steps)
TEN_PERCENT = Recipe(20, 0.2, 0.01, 0.0, two_steps)


def linear_on_crops(
    config: Config, dataset: Dataset, model: Model, num_classes: int, recipe: Recipe
) -> dict[str, float]:
    """Accuracy of a linear classifier on the frozen network, trained on crops, in per cent."""
    network = train(config, dataset.train, model, num_classes, recipe)
    return _figures(config, dataset.test, network, recipe, "linear_crops")


def semi_supervised(
    config: Config, dataset: Dataset, model: Model, num_classes: int, share: float, recipe: Recipe
) -> dict[str, float]:
    """Accuracy of the network fine-tuned on `share` per cent of the labels, in per cent."""
    rows = subset.percent(dataset.train.labels, share, config.seed)
    network = train(config, dataset.train.take(rows), model, num_classes, recipe)
    return _figures(config, dataset.test, network, recipe, f"semi{share:g}")


def recipe_for(share: float) -> Recipe:
    """Return the settings for this share of the labels, in per cent."""
    return ONE_PERCENT if share <= FEW else TEN_PERCENT


def train(
    config: Config, part: Part, model: Model, num_classes: int, recipe: Recipe
) -> nn.Sequential:
    """Return a copy of the backbone with its classifier, trained on crops of the images.

    Raises:
        TrainerError: the loss is no number any more.
    """
    backbone = copy.deepcopy(model.backbone)
    like = next(backbone.parameters())
    classifier = _classifier(model.head[0].in_features, num_classes, config.seed).to(like)
    # as in Goyal et al. 2017 (arXiv 1706.02677): fewer images in a batch, smaller steps
    scale = min(1.0, len(part) / BATCH)
    groups = [{"params": list(classifier.parameters()), "lr": recipe.rate * scale}]
    if recipe.network_rate:
        groups.append({"params": list(backbone.parameters()), "lr": recipe.network_rate * scale})
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=recipe.weight_decay)
    num_steps = recipe.epochs * max(1, len(part) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.schedule(step / num_steps)
    )
    backbone.train(recipe.network_rate > 0)
    for epoch in range(recipe.epochs):
        for images, labels in crops.batches(part, config, epoch, BATCH):
            images = images.to(like).contiguous(memory_format=torch.channels_last)
            with torch.set_grad_enabled(recipe.network_rate > 0):
                features = backbone(images)
            loss = functional.cross_entropy(classifier(features), labels.to(like.device))
            _check(float(loss.detach()), recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return nn.Sequential(backbone, classifier)


def _figures(
    config: Config, test: Part, network: nn.Module, recipe: Recipe, name: str
) -> dict[str, float]:
    scores = part_features(config, test, network)
    _check(float(scores.abs().max()), recipe)  # the last step may have gone too far
    return figures.top(scores, test.labels, name)


def _classifier(dim: int, num_classes: int, seed: int) -> nn.Linear:
    classifier = nn.Linear(dim, num_classes)
    generator = seeds.torch_generator(seed, num_classes)
    nn.init.normal_(classifier.weight, std=INITIAL_STD, generator=generator)
    nn.init.zeros_(classifier.bias)
    return classifier


def _check(value: float, recipe: Recipe) -> None:
    """Refuse a loss or a score that is no number."""
    if not math.isfinite(value):
        raise TrainerError(
            f"the fine-tuning has run away to {value}: the learning rates {recipe.rate:g} of the "
            f"classifier and {recipe.network_rate:g} of the network are too high; --rates sets "
            "those of --semi"
        )
