"""Scores of features and prototypes in 16 bits, none of which can overflow.

A float16 has 8 times the digits of a bfloat16 and ends at 65504, so each score is stored over the
bounds of its two rows: |z c| <= |z| |c| <= bound(z) bound(c) with bound(x) = sqrt(D) max |x|. What
is stored is at most 1, and off by 2^-11 of itself or 2^-25.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import power_of_two
from swav_kernels.triton_kernels.prototype_scores import bounded_scores
from swav_kernels.triton_kernels.reduce import load_rows


@triton.jit
def _half_rows_kernel(
    rows_ptr, half_ptr,  # [N, D]
    bounds_ptr,  # [N]
    num_rows, root_dim,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Round rows to bfloat16 and bound their lengths; a row of zeros is bounded by 1."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, DIM, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        half = load_rows(rows_ptr, rows, num_rows, d, DIM).to(tl.bfloat16)
        largest = tl.maximum(largest, tl.max(tl.abs(half.to(tl.float32)), 1))
        inside = (rows < num_rows)[:, None] & (d < DIM)[None, :]
        tl.store(half_ptr + rows[:, None] * DIM + d[None, :], half, mask=inside)
    bounds = tl.where(largest > 0, root_dim * largest, 1.0)
    tl.store(bounds_ptr + rows, bounds, mask=rows < num_rows)


@dataclass(frozen=True)
class HalfRows:
    """Rows [N, D] in bfloat16, and bounds [N] of their lengths."""

    rows: Tensor
    bounds: Tensor


@dataclass(frozen=True)
class HalfScores:
    """Scores [N, K] in float16 over the bounds of features and prototypes."""

    scores: Tensor
    features: HalfRows
    prototypes: HalfRows


BLOCK_ROWS, MOST_COLUMNS = 16, 128


def half_scores(features: Tensor, prototypes: Tensor) -> HalfScores:
    """Return the scores of features [N, D] and prototypes [K, D] rounded to bfloat16; N > 0."""
    z, c = _half_rows(features), _half_rows(prototypes)
    return HalfScores(bounded_scores(z.rows, c.rows, z.bounds, c.bounds), z, c)


def _half_rows(rows: Tensor) -> HalfRows:
    num_rows, dim = rows.shape
    half = torch.empty(rows.shape, dtype=torch.bfloat16, device=rows.device)
    bounds = torch.empty(num_rows, dtype=torch.float32, device=rows.device)
    _half_rows_kernel[(triton.cdiv(num_rows, BLOCK_ROWS),)](
        rows_ptr=rows,
        half_ptr=half,
        bounds_ptr=bounds,
        num_rows=num_rows,
        root_dim=dim**0.5,
        DIM=dim,
        BLOCK_N=BLOCK_ROWS,
        BLOCK_D=power_of_two(dim, 16, MOST_COLUMNS),
    )
    return HalfRows(half, bounds)
