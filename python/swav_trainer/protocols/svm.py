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

    Each class takes the cost of the highest average precision over the folds.
    """
    least = torch.finfo(torch.float64).min
    scores = torch.full((len(test), num_classes), least, dtype=torch.float64)
    for label in labels.unique().tolist():
        wanted = (labels == label).numpy()
        cost = _best_cost(train.numpy(), wanted, seed)
        machine = _fit(train.numpy(), wanted, cost, seed)
        scores[:, label] = torch.from_numpy(machine.decision_function(test.numpy()))
    return scores


def _best_cost(train: np.ndarray, wanted: np.ndarray, seed: int) -> float:
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(wanted.sum()), int((~wanted).sum()))
    if folds < 2:
        return COST_OF_ONE
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(train, wanted))

    def precision(cost: float) -> float:
        return float(np.mean([
            average_precision_score(
                wanted[rows],
                _fit(train[others], wanted[others], cost, seed).decision_function(train[rows]),
            )
            for others, rows in splits
        ]))  # fmt: skip

    return max(COSTS, key=precision)  # the lowest of equals


def _fit(train: np.ndarray, wanted: np.ndarray, cost: float, seed: int):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        C=cost, class_weight={True: POSITIVE_WEIGHT, False: 1.0}, random_state=seed, max_iter=2000
    )
    with warnings.catch_warnings():  # at the largest cost it may stop short of the optimum
        warnings.simplefilter("ignore", ConvergenceWarning)
        return machine.fit(train, wanted)
