"""The queue of all processes in one checkpoint, and its rows dealt out again."""

import torch
from torch import Tensor

from swav_trainer import ranks


def deal(storage: Tensor, position: Tensor, processes: int) -> tuple[Tensor, Tensor]:
    """Return this process's storage and position from those of `processes` others.

    Args:
        storage: [A, L, D], the processes' rings one after another.
        position: next row and number of filled rows of each ring, the same for all.
        processes: how many wrote it.
    """
    rings = storage.chunk(processes, 1)
    if processes == ranks.count():
        return rings[ranks.index()], position
    following, filled = position.tolist()
    length = rings[0].shape[1]
    oldest = following if filled == length else 0
    order = (torch.arange(filled) + oldest) % length
    # by age, so that each process gets old ones and new ones
    rows = torch.stack([ring[:, order] for ring in rings], 2).flatten(1, 2)
    mine = rows[:, ranks.index() :: ranks.count()]
    length = storage.shape[1] // ranks.count()
    # the shortest share: rings of unequal fill would fall out of step
    filled = min(rows.shape[1] // ranks.count(), length)
    new = storage.new_zeros(storage.shape[0], length, storage.shape[2])
    new[:, :filled] = mine[:, mine.shape[1] - filled :]
    return new, torch.tensor([filled % length, filled])
