"""Weighted vote of the nearest training images by cosine, exact, shared by the processes of a run.

Each process keeps its rows of the training features and finds the nearest ones among them; the
nearest of all are the nearest of those. Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from swav_trainer import ranks

TEMPERATURE = 0.07
CHUNK = 128  # test images at a time: of 1.3 million training images 0.7 GB of cosines


def share(count: int) -> range:
    """Return the rows of this process."""
    index, processes = ranks.index(), ranks.count()
    return range(count * index // processes, count * (index + 1) // processes)


def accuracy(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    neighbours: Sequence[int],
) -> dict[int, float]:
    """Share of right votes for each number of neighbours, in per cent.

    Args:
        train: features [N', D] and labels [N'] of this process's `share`.
        test: features [M', D] of this process's `share`, and labels [M] of all.
        num_classes: labels lie below it.
        neighbours: numbers of neighbours.
    """
    bank, labels = functional.normalize(train[0], dim=1), train[1].to(train[0].device)
    wanted = test[1].to(bank.device)
    queries = _gather_rows(functional.normalize(test[0], dim=1), len(wanted))
    right = dict.fromkeys(neighbours, 0)
    for rows, truth in zip(queries.split(CHUNK), wanted.split(CHUNK)):
        similarity, found = _nearest(rows, bank, labels, max(neighbours))
        weights = (similarity / TEMPERATURE).exp()
        for count in neighbours:
            votes = torch.zeros(len(rows), num_classes, device=bank.device)
            votes.scatter_add_(1, found[:, :count], weights[:, :count])
            right[count] += int((votes.argmax(1) == truth).sum())
    return {count: 100 * number / len(wanted) for count, number in right.items()}


def _nearest(rows: Tensor, bank: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Cosines and labels of the nearest images of all processes, [n, most], nearest first.

    Places that no image fills have cosine -inf: their votes weigh nothing.
    """
    similarity, nearest = (rows @ bank.T).topk(min(most, len(bank)), dim=1)
    empty = most - similarity.shape[1]
    similarity = functional.pad(similarity, (0, empty), value=-torch.inf)
    found = functional.pad(labels[nearest], (0, empty))
    if ranks.count() == 1:
        return similarity, found
    similarity = torch.cat(ranks.gather(similarity), 1)
    found = torch.cat(ranks.gather(found), 1)
    similarity, places = similarity.topk(most, dim=1)
    return similarity, found.gather(1, places)


def _gather_rows(mine: Tensor, total: int) -> Tensor:
    """Return the rows of all processes, whose shares may differ by one."""
    longest = -(-total // ranks.count())
    padded = functional.pad(mine, (0, 0, 0, longest - len(mine)))
    parts = ranks.gather(padded)
    counts = [total * (i + 1) // len(parts) - total * i // len(parts) for i in range(len(parts))]
    return torch.cat([part[:count] for part, count in zip(parts, counts)])
