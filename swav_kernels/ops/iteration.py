"""The Sinkhorn iteration over a backend's sweeps, with the collectives between them.

Used where one kernel cannot run all iterations by itself: over a process group, or on a backend
that has only the sweeps. f = log u; T sums of [A, K] cross the group, and one maximum unless the
caller's score bound replaces it.
"""

import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from swav_kernels.distributed import Group, all_reduce
from swav_kernels.reference.sinkhorn import level

LARGEST_SHIFT = 40.0  # exp(-2 * 40) is a normal float32, so no column can underflow


def shift_from_bound(score_bound: float | None, epsilon: float) -> float | None:
    """Return the fixed shift that replaces the reduced maximum, or None where it is unsafe."""
    if score_bound is None or score_bound / epsilon > LARGEST_SHIFT:
        return None
    return score_bound / epsilon


def potentials(
    kernels: ModuleType,
    inputs: tuple[Tensor, ...],
    sample_weights: Tensor | None,
    prototype_weights: Tensor | None,
    epsilon: float,
    iterations: int,
    shift: float | None,
    group: Group,
    precision: str,
    *options: str,
) -> Tensor:
    """Return f [A, K] from a backend's sweeps over scores, or over features and prototypes.

    Sweeps take the options; the kernel that runs all iterations by itself takes the precision.
    """
    log_r = None if prototype_weights is None else prototype_weights.log()
    if group is None and hasattr(kernels, "potentials"):
        f: Tensor = kernels.potentials(
            *inputs, sample_weights, log_r, epsilon, iterations, precision
        )
        return f
    return solve(
        lambda: kernels.column_stats(*inputs, sample_weights, epsilon, *options),
        lambda f: kernels.column_sums(*inputs, f, sample_weights, epsilon, *options),
        iterations,
        log_r,
        shift,
        group,
    )


def solve(
    column_stats: Callable[[], tuple[Tensor, Tensor]],
    column_sums: Callable[[Tensor], Tensor] | None,
    iterations: int,
    log_prototype_weights: Tensor | None,
    shift: float | None,
    group: Group,
) -> Tensor:
    """Return f [A, K] after T iterations.

    Args:
        column_stats: first sweep: (max_b t, sum_b exp(t - max)), t = s / epsilon + log w, [A, K].
        column_sums: later sweeps: f -> sum_b w_b softmax_k(s_b / epsilon + f), [A, K].
        iterations: T >= 1.
        log_prototype_weights: log r [K], or None for equal shares.
        shift: a known bound of t that replaces the reduced maximum, or None.
        group: the ranks to sum over.
    """
    column_max, sums = column_stats()
    if group is not None:
        top = (
            all_reduce(column_max.clone(), "max", group)
            if shift is None
            else torch.full_like(column_max, shift)
        )
        # an empty column stays empty: exp(-inf), never exp(-inf + inf)
        offset = torch.where(top == -math.inf, top, column_max - top)
        sums = all_reduce(torch.where(sums == 0, sums, sums * offset.exp()), "sum", group)
        column_max = top
    log_r = sums.new_zeros(()) if log_prototype_weights is None else log_prototype_weights
    f = log_r - column_max - sums.log()
    f = torch.where(sums == 0, -math.inf, f)
    f = _poison(f, sums)
    for _ in range(iterations - 1):
        assert column_sums is not None
        sums = all_reduce(column_sums(f), "sum", group)
        step = log_r - sums.clamp_min(torch.finfo(sums.dtype).tiny).log() + level(f, sums, log_r)
        f = _poison(torch.where(f == -math.inf, f, f + step), sums)
    return f


def _poison(f: Tensor, sums: Tensor) -> Tensor:
    """One bad score makes its whole problem NaN, never plausible numbers."""
    bad = ~(torch.isfinite(sums) & (f < math.inf)).all(-1, keepdim=True)
    return torch.where(bad, math.nan, f)
