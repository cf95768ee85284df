"""From column sums to prototype potentials f, natural logarithms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.reduce import (
    BLOCK_COLUMNS,
    BLOCK_PARTIALS,
    LN2,
    finite_shift,
    load_rows,
    sum_over_partials,
)

SMALLEST_SUM = tl.constexpr(2.0**-126)
NAN_BLOCK = 4096
MOST_STEPS = 4  # of f, before it is put back: the paper's 3 iterations go without


@triton.jit
def pending_potentials(
    partial_max_ptr, partial_sum_ptr, f_ptr, log_r_ptr, num_partials,  # Pending
    problem, num_problems, num_prototypes, k,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """F [BLOCK] of one problem at prototypes k; a dead prototype stays dead, NaN stays NaN."""
    inside = k < num_prototypes
    first = tl.cast(problem, tl.int64) * num_prototypes
    if partial_sum_ptr is None:
        f = tl.load(f_ptr + first + k, mask=inside, other=0.0)
    else:
        size = num_problems * tl.cast(num_prototypes, tl.int64)
        columns = tl.where(inside, first + k, size)
        if partial_max_ptr is None:
            total = sum_over_partials(partial_sum_ptr, num_partials, size, columns, BLOCK_P, BLOCK)
            f = tl.load(f_ptr + columns, mask=inside, other=0.0)
            is_alive = f != float("-inf")
            f -= tl.log2(tl.maximum(total, SMALLEST_SUM)) * LN2
        else:
            maximum, total = _combined_stats(
                partial_max_ptr, partial_sum_ptr, num_partials, size, columns, BLOCK_P, BLOCK
            )
            is_alive = total != 0
            f = (maximum + tl.log2(total)) * -LN2
        if log_r_ptr is not None:
            f += tl.load(log_r_ptr + k, mask=inside, other=0.0)
        f = tl.where(is_alive, f, float("-inf"))
        # NaN or +inf among the scores or weights
        f = tl.where((total < float("inf")) & (f < float("inf")), f, float("nan"))
    return f


@triton.jit
def _combined_stats(
    max_ptr, sum_ptr, num_partials, size, columns, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr
):
    """Maximum and sum of partials [P, size] at columns [BLOCK]; (-inf, 0) is an empty column."""
    maximum = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        tile = _maxima(max_ptr, start, num_partials, size, columns, BLOCK_P)
        maximum = tl.maximum(maximum, tl.max(tile, 0))
    shift = finite_shift(maximum)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        tile = _maxima(max_ptr, start, num_partials, size, columns, BLOCK_P)
        partials = start + tl.arange(0, BLOCK_P)
        sums = load_rows(sum_ptr, partials, num_partials, columns, size)
        total += tl.sum(sums * tl.exp2(tile - shift[None, :]), 0)
    return maximum, total


@triton.jit
def _maxima(max_ptr, start, num_partials, size, columns, BLOCK_P: tl.constexpr):
    """Partial maxima [BLOCK_P, BLOCK]; -inf outside."""
    partials = start + tl.arange(0, BLOCK_P)
    inside = (partials < num_partials)[:, None] & (columns < size)[None, :]
    offsets = partials.to(tl.int64)[:, None] * size + columns[None, :]
    return tl.load(max_ptr + offsets, mask=inside, other=float("-inf"))


@triton.jit
def _potentials_kernel(
    partial_max_ptr, partial_sum_ptr, f_ptr, log_r_ptr, num_partials,  # Pending
    out_ptr,  # [A, K]
    num_prototypes,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    f = pending_potentials(
        partial_max_ptr, partial_sum_ptr, f_ptr, log_r_ptr, num_partials,
        problem, tl.num_programs(1), num_prototypes, k, BLOCK_P, BLOCK,
    )  # fmt: skip
    tl.store(out_ptr + problem * num_prototypes + k, f, mask=k < num_prototypes)


@triton.jit
def _combine_stats_kernel(
    partial_max_ptr, partial_sum_ptr,  # [P, size]
    max_ptr, sum_ptr,
    num_partials, size,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    maximum, total = _combined_stats(
        partial_max_ptr, partial_sum_ptr, num_partials, size, columns, BLOCK_P, BLOCK
    )
    tl.store(max_ptr + columns, maximum * LN2, mask=columns < size)
    tl.store(sum_ptr + columns, total, mask=columns < size)


@triton.jit
def _spread_nan_kernel(f_ptr, out_ptr, num_prototypes, BLOCK: tl.constexpr):
    """One NaN makes a whole problem NaN. One program a problem."""
    first = tl.program_id(0).to(tl.int64) * num_prototypes
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_prototypes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + first + k, mask=k < num_prototypes, other=0.0)
        found = tl.where(f == f, found, 1)
    is_bad = tl.max(found, 0) > 0
    for start in range(0, num_prototypes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + first + k, mask=k < num_prototypes, other=0.0)
        tl.store(out_ptr + first + k, tl.where(is_bad, float("nan"), f), mask=k < num_prototypes)


@dataclass(frozen=True)
class Pending:
    """Potentials f [A, K] as they are, or one step away: whoever needs them may take it."""

    f: Tensor | None  # [A, K], before the step; None before the first
    sums: Tensor | None = None  # [P, A, K], partial column sums of the step; None: f is ready
    maximum: Tensor | None = None  # [P, A, K], beside the sums of the first step
    log_r: Tensor | None = None  # [K]

    def arguments(self, block_p: int) -> dict[str, Any]:
        """Arguments of `pending_potentials`."""
        return {
            "partial_max_ptr": self.maximum,
            "partial_sum_ptr": self.sums,
            "f_ptr": self.f,
            "log_r_ptr": self.log_r,
            "num_partials": 0 if self.sums is None else self.sums.shape[0],
            "BLOCK_P": block_p,
        }

    def settle(self) -> Tensor:
        """Return f, after the step in a launch of its own."""
        if self.sums is None:
            assert self.f is not None
            return self.f
        _, num_problems, num_prototypes = self.sums.shape
        out = torch.empty_like(self.sums[0])
        _potentials_kernel[(triton.cdiv(num_prototypes, BLOCK_COLUMNS), num_problems)](
            **self.arguments(BLOCK_PARTIALS),
            out_ptr=out,
            num_prototypes=num_prototypes,
            BLOCK=BLOCK_COLUMNS,
        )
        return out

    def after(self, f: Tensor, sums: Tensor) -> "Pending":
        """Return what follows: f is known, and the partial sums [P, A, K] of its codes."""
        return Pending(f, sums, None, self.log_r)


def combine_stats(maximum: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Partial (maximum, sum) [P, A, K] of `columns.column_stats` -> natural ones [A, K]."""
    column_max, column_sum = torch.empty_like(maximum[0]), torch.empty_like(sums[0])
    size = column_max.numel()
    _combine_stats_kernel[(triton.cdiv(size, BLOCK_COLUMNS),)](
        partial_max_ptr=maximum,
        partial_sum_ptr=sums,
        max_ptr=column_max,
        sum_ptr=column_sum,
        num_partials=maximum.shape[0],
        size=size,
        BLOCK_P=BLOCK_PARTIALS,
        BLOCK=BLOCK_COLUMNS,
    )
    return column_max, column_sum


def sweeps(
    stats: tuple[Tensor, Tensor],
    sweep: Callable[[Pending], Pending],
    log_r: Tensor | None,
    iterations: int,
) -> Pending:
    """T iterations but for the last step, from partial column stats (maximum, sum) and sweeps.

    All of f moves by about log(K / N) in each, which would cost digits: now and then it is put back
    to where it was.
    """
    maximum, sums = stats
    pending = Pending(None, sums, maximum, log_r)
    before = None
    for iteration in range(1, iterations):
        if iteration % MOST_STEPS == 0:
            f = pending.settle()
            if before is not None:
                is_on = f != -torch.inf
                moved = torch.where(is_on, f - before, 0).sum(-1, keepdim=True)
                f = f - moved / is_on.sum(-1, keepdim=True).clamp_min(1)
            before, pending = f, Pending(f, log_r=log_r)
        pending = sweep(pending)
    return pending


def iterate(
    stats: tuple[Tensor, Tensor],
    sweep: Callable[[Pending], Pending],
    log_r: Tensor | None,
    iterations: int,
) -> Tensor:
    """F [A, K] after T iterations, from partial column stats (maximum, sum) and sweeps."""
    f = sweeps(stats, sweep, log_r, iterations).settle()
    if iterations > 1:  # the softmax of a sweep has spread any NaN over its problem
        return f
    num_problems, num_prototypes = f.shape
    out = torch.empty_like(f)
    _spread_nan_kernel[(num_problems,)](
        f_ptr=f, out_ptr=out, num_prototypes=num_prototypes, BLOCK=NAN_BLOCK
    )
    return out
