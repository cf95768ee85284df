"""Linear probe on frozen features: many learning rates and weight decays, trained at once."""

import math

import torch
from torch import Tensor

from swav_trainer import seeds
from swav_trainer.protocols import figures, subset

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
EPOCHS = 100
BATCH = 256
MOMENTUM = 0.9
HOLDOUT = 0.2  # of the training images, to choose a probe by

Weights = tuple[Tensor, Tensor]  # of P probes: [P, D, C] and [P, 1, C]


def linear(
    features: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    num_classes: int,
    seed: int,
    epochs: int = EPOCHS,
) -> tuple[dict[str, float], str]:
    """Accuracy on the held-out images of the probe that is best on a part of the training images.

    That one is then trained once more, on all training images.

    Args:
        features: of training and held-out images, [N, D] and [M, D], on the device to train on.
        labels: [N] and [M].
        num_classes: C.
        seed: of the part to choose by and of the order.
        epochs: passes over the training images.

    Returns:
        The figures, in per cent, and which probe it was.
    """
    train, test = _standardised(*features)
    targets = labels[0].to(train.device)
    rates, decays = _grid()
    fit_rows, choice_rows = subset.hold_out(labels[0], HOLDOUT, seed)
    weights = fit(train[fit_rows], targets[fit_rows], num_classes, (rates, decays), seed, epochs)
    accuracies = _accuracies(weights, train[choice_rows], targets[choice_rows])
    best = int(accuracies.argmax())
    chosen = rates[best : best + 1], decays[best : best + 1]
    weight, bias = fit(train, targets, num_classes, chosen, seed, epochs)
    scores = test @ weight[0] + bias[0]
    told = f"learning rate {rates[best]:g}, weight decay {decays[best]:g}"
    return figures.top(scores.cpu(), labels[1], "linear"), told


def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    rates_and_decays: tuple[Tensor, Tensor],
    seed: int,
    epochs: int,
) -> Weights:
    """Train a softmax regression for each rate and decay, [P] each, by SGD from zero weights.

    Every step is one product for all of them. The rate falls by a cosine to zero; biases do not
    decay.
    """
    rates, decays = (values.to(features).view(-1, 1, 1) for values in rates_and_decays)
    count, dim, probes = len(features), features.shape[1], len(rates)
    weight = features.new_zeros(probes, dim, num_classes)
    bias = features.new_zeros(probes, 1, num_classes)
    speeds = torch.zeros_like(weight), torch.zeros_like(bias)
    num_steps = epochs * math.ceil(count / BATCH)
    step = 0
    for epoch in range(epochs):
        for rows in seeds.order(seed, epoch, count).split(BATCH):
            rate = rates * (0.5 * (1 + math.cos(math.pi * step / num_steps)))
            x, wanted = features[rows], labels[rows]
            d_scores = (x @ weight + bias).softmax(2)  # [P, B, C]
            d_scores[:, torch.arange(len(rows)), wanted] -= 1
            d_scores /= len(rows)
            gradients = x.T @ d_scores + decays * weight, d_scores.sum(1, keepdim=True)
            for value, speed, gradient in zip((weight, bias), speeds, gradients):
                speed.mul_(MOMENTUM).add_(gradient)
                value.sub_(rate * speed)
            step += 1
    return weight, bias


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = train.mean(0), train.std(0) + 1e-4
    return (train - mean) / std, (test - mean) / std


def _grid() -> tuple[Tensor, Tensor]:
    rates, decays = torch.tensor(RATES), torch.tensor(DECAYS)
    return rates.repeat_interleave(len(decays)), decays.repeat(len(rates))


def _accuracies(weights: Weights, features: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers of each probe, [P]; of one that has run away, 0."""
    right = 0
    for x, wanted in zip(features.split(BATCH), labels.split(BATCH)):
        scores = x @ weights[0] + weights[1]  # [P, B, C]
        right += (scores.argmax(2) == wanted).sum(1)
    finite = weights[0].isfinite().flatten(1).all(1) & weights[1].isfinite().flatten(1).all(1)
    return right * finite / len(features)
