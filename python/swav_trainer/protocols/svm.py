"""Linear SVMs on frozen features, one against the rest, on all labels and on few.

Source: Goyal et al. 2019 (arXiv 1905.01235), sections 4.2 and 6.1: as VOC07 is evaluated.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from swav_trainer.protocols import figures, subset

SHOTS = (1, 2, 4, 8, 16)  # labels a class
DRAWS = 5
COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)
COST_OF_ONE = 1.0  # a single label a class leaves none to choose a cost by
FOLDS = 3
POSITIVE_WEIGHT = 2.0  # an image of the class against one of the rest

Features = tuple[Tensor, Tensor]


def svm(
    features: Features, labels: tuple[Tensor, Tensor], num_classes: int, seed: int
) -> Iterator[tuple[str, float]]:
    """Yield mean average precision and accuracy, of all labels and of few, in per cent.

    Args:
        features: of training and held-out images, [N, D] and [M, D].
        labels: [N] and [M].
        num_classes: C.
        seed: of the draws.
    """
    train, test = (functional.normalize(part.double(), dim=1) for part in features)
    scores = decide(train, labels[0], test, num_classes, seed)
    yield "svm_map", figures.mean_average_precision(scores, labels[1])
    yield "svm", figures.top(scores, labels[1], "svm")["svm"]
    for shots in SHOTS:
        precisions, accuracies = [], []
        for number in range(DRAWS):
            rows = subset.draw(labels[0], shots, seed, shots, number)
            scores = decide(train[rows], labels[0][rows], test, num_classes, seed)
            precisions.append(figures.mean_average_precision(scores, labels[1]))
            accuracies.append(figures.top(scores, labels[1], "svm")["svm"])
        yield f"svm{shots}_map", float(np.mean(precisions))
        yield f"svm{shots}", float(np.mean(accuracies))


def decide(train: Tensor, labels: Tensor, test: Tensor, num_classes: int, seed: int) -> Tensor:
    """Signed distances of test images to each class's plane, [M, C]; the least for unseen classes.

    The cost is that of the highest mean average precision over the folds: one for all classes, so
    that their distances compare (in VOC07, where an image has many classes, each has its own).
    """
    return _distances(train, labels, test, num_classes, _best_cost(train, labels, seed), seed)


def _best_cost(train: Tensor, labels: Tensor, seed: int) -> float:
    folds = min(FOLDS, int(labels.bincount().max()))
    if folds < 2:
        return COST_OF_ONE
    fold = torch.empty_like(labels)  # of each image: those of a class are dealt out in turn
    for rows in subset.shuffled(labels, seed):
        fold[rows] = torch.arange(len(rows)) % folds
    num_classes = int(labels.max()) + 1

    def precision(cost: float) -> float:
        found = []
        for i in range(folds):
            learn, test = fold != i, fold == i
            scores = _distances(train[learn], labels[learn], train[test], num_classes, cost, seed)
            found.append(figures.mean_average_precision(scores, labels[test]))
        return float(np.mean(found))

    return max(COSTS, key=precision)  # the lowest of equals


def _distances(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, cost: float, seed: int
) -> Tensor:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    least = torch.finfo(torch.float64).min
    scores = torch.full((len(test), num_classes), least, dtype=torch.float64)
    for label in labels.unique().tolist():
        machine = LinearSVC(
            C=cost, class_weight={True: POSITIVE_WEIGHT, False: 1.0}, random_state=seed,
            max_iter=2000,
        )  # fmt: skip
        with warnings.catch_warnings():  # at the largest cost it may stop short of the optimum
            warnings.simplefilter("ignore", ConvergenceWarning)
            machine.fit(train.numpy(), (labels == label).numpy())
        scores[:, label] = torch.from_numpy(machine.decision_function(test.numpy()))
    return scores
