"""From column sums to prototype potentials f, natural logarithms."""

from collections.abc import Callable

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


@triton.jit
def _first_potentials_kernel(
    partial_max_ptr, partial_sum_ptr,  # [P, A, K]
    log_r_ptr, f_ptr, max_ptr, sum_ptr,
    num_partials, num_prototypes,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """F = log r - max - log sum, or natural max and sum; (-inf, 0) is an empty column."""
    size = tl.num_programs(1) * tl.cast(num_prototypes, tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < num_prototypes
    columns = tl.where(inside, tl.program_id(1).to(tl.int64) * num_prototypes + k, size)
    maximum = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        tile = _maxima(partial_max_ptr, start, num_partials, size, columns, BLOCK_P)
        maximum = tl.maximum(maximum, tl.max(tile, 0))
    shift = finite_shift(maximum)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        tile = _maxima(partial_max_ptr, start, num_partials, size, columns, BLOCK_P)
        partials = start + tl.arange(0, BLOCK_P)
        sums = load_rows(partial_sum_ptr, partials, num_partials, columns, size)
        total += tl.sum(sums * tl.exp2(tile - shift[None, :]), 0)
    if f_ptr is None:
        tl.store(max_ptr + columns, maximum * LN2, mask=inside)
        tl.store(sum_ptr + columns, total, mask=inside)
    else:
        f = (maximum + tl.log2(total)) * -LN2
        if log_r_ptr is not None:
            f += tl.load(log_r_ptr + k, mask=inside, other=0.0)
        f = tl.where(total == 0, float("-inf"), f)
        # NaN or +inf among the scores or weights
        f = tl.where((total < float("inf")) & (f < float("inf")), f, float("nan"))
        tl.store(f_ptr + columns, f, mask=inside)


@triton.jit
def _maxima(max_ptr, start, num_partials, size, columns, BLOCK_P: tl.constexpr):
    """Partial maxima [BLOCK_P, BLOCK]; -inf outside."""
    partials = start + tl.arange(0, BLOCK_P)
    inside = (partials < num_partials)[:, None] & (columns < size)[None, :]
    offsets = partials.to(tl.int64)[:, None] * size + columns[None, :]
    return tl.load(max_ptr + offsets, mask=inside, other=float("-inf"))


@triton.jit
def _next_potentials_kernel(
    partial_sum_ptr,  # [P, A, K]
    log_r_ptr, f_ptr, out_ptr,
    num_partials, num_prototypes,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """F += log r - log sum; a dead prototype stays dead, NaN stays NaN."""
    size = tl.num_programs(1) * tl.cast(num_prototypes, tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < num_prototypes
    columns = tl.where(inside, tl.program_id(1).to(tl.int64) * num_prototypes + k, size)
    total = sum_over_partials(partial_sum_ptr, num_partials, size, columns, BLOCK_P, BLOCK)
    f = tl.load(f_ptr + columns, mask=inside, other=0.0)
    step = tl.log2(tl.maximum(total, SMALLEST_SUM)) * -LN2
    if log_r_ptr is not None:
        step += tl.load(log_r_ptr + k, mask=inside, other=0.0)
    f = tl.where(f == float("-inf"), f, f + step)
    f = tl.where((total < float("inf")) & (f < float("inf")), f, float("nan"))
    tl.store(out_ptr + columns, f, mask=inside)


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


def combine_stats(maximum: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Partial (maximum, sum) [P, A, K] of `columns.column_stats` -> natural ones [A, K]."""
    column_max, column_sum = torch.empty_like(maximum[0]), torch.empty_like(sums[0])
    _first(maximum, sums, None, None, column_max, column_sum)
    return column_max, column_sum


def first_potentials(maximum: Tensor, sums: Tensor, log_r: Tensor | None) -> Tensor:
    """Partial (maximum, sum) [P, A, K] -> f [A, K]."""
    f = torch.empty_like(maximum[0])
    _first(maximum, sums, log_r, f, None, None)
    return f


def _first(
    maximum: Tensor,
    sums: Tensor,
    log_r: Tensor | None,
    f: Tensor | None,
    column_max: Tensor | None,
    column_sum: Tensor | None,
) -> None:
    num_partials, num_problems, num_prototypes = maximum.shape
    _first_potentials_kernel[(triton.cdiv(num_prototypes, BLOCK_COLUMNS), num_problems)](
        partial_max_ptr=maximum,
        partial_sum_ptr=sums,
        log_r_ptr=log_r,
        f_ptr=f,
        max_ptr=column_max,
        sum_ptr=column_sum,
        num_partials=num_partials,
        num_prototypes=num_prototypes,
        BLOCK_P=BLOCK_PARTIALS,
        BLOCK=BLOCK_COLUMNS,
    )


def next_potentials(f: Tensor, sums: Tensor, log_r: Tensor | None) -> Tensor:
    """Partial column sums [P, A, K] of the codes of f [A, K] -> the next f."""
    num_partials, num_problems, num_prototypes = sums.shape
    out = torch.empty_like(f)
    _next_potentials_kernel[(triton.cdiv(num_prototypes, BLOCK_COLUMNS), num_problems)](
        partial_sum_ptr=sums,
        log_r_ptr=log_r,
        f_ptr=f,
        out_ptr=out,
        num_partials=num_partials,
        num_prototypes=num_prototypes,
        BLOCK_P=BLOCK_PARTIALS,
        BLOCK=BLOCK_COLUMNS,
    )
    return out


def iterate(
    stats: tuple[Tensor, Tensor],
    sweep: Callable[[Tensor], Tensor],
    log_r: Tensor | None,
    iterations: int,
) -> Tensor:
    """F [A, K] after T iterations, from partial column stats and sweeps f -> partial sums."""
    f = first_potentials(*stats, log_r)
    for _ in range(iterations - 1):
        f = next_potentials(f, sweep(f), log_r)
    if iterations > 1:  # the softmax of a sweep has spread any NaN over its problem
        return f
    num_problems, num_prototypes = f.shape
    out = torch.empty_like(f)
    _spread_nan_kernel[(num_problems,)](
        f_ptr=f, out_ptr=out, num_prototypes=num_prototypes, BLOCK=NAN_BLOCK
    )
    return out
