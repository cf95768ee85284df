"""All chance of a run, from its seed and a position in it: nothing to save, nothing to restore."""

import functools

import numpy as np
import torch


def number(*position: int) -> int:
    """Return a 63-bit number for a position such as (seed, epoch, step)."""
    state = np.random.SeedSequence(position).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def torch_generator(*position: int) -> torch.Generator:
    """Return a generator of its own for the position."""
    return torch.Generator().manual_seed(number(*position))


@functools.lru_cache(maxsize=1)
def order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """Return the order of the training images in an epoch, which no caller may change.

    Every step asks for it, and a million numbers take some 40 ms to shuffle.
    """
    return torch.randperm(count, generator=torch_generator(seed, epoch))
