"""Exponentials that stay from one sweep over whole rows to the next, as bfloat16.

The codes p of the first potentials f_1 are row-normalised exponentials, and those of any later f
are p g / sum_k p g with g = exp(f - f_1): 2 bytes a score are read in place of 4, and K
exponentials are taken in place of N * K.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.reduce import LOG2E

# Bits that g may span. p underflows at 2^-126, so what is lost of a column's sum is at most
# N 2^-126 max(g) / min_b sum_k p g <= N 2^-126 2^64 K, for some p of a row is 1 / K or more. The
# sum itself is 1 / K or more: the step before made the sums of u E a over the rows 1, so no
# element of it is above 1, none of its rows sums to more than K, and normalising them divides no
# column by more. That holds for plain problems, equal shares and no weights.
WIDEST_FACTORS = tl.constexpr(64.0)
# fewer sweeps read no fewer bytes: the copy's write takes what its one read saves
FEWEST_ITERATIONS = 4


@dataclass
class Kept:
    """Codes [A, N, K] of potentials f [A, K], which the first sweep that has this writes."""

    codes: Tensor
    f: Tensor | None = None


@triton.jit
def kept_factors(f, kept_f):
    """Factors g [BLOCK] over their maximum, and whether they are within range."""
    step = (f - kept_f) * LOG2E
    is_dead = kept_f == float("-inf")  # and so is f
    most = tl.max(tl.where(is_dead, float("-inf"), step), 0)
    least = tl.min(tl.where(is_dead, float("inf"), step), 0)
    return tl.where(is_dead, 0.0, tl.exp2(step - most)), most - least <= WIDEST_FACTORS


@triton.jit
def kept_sums(
    kept_ptr, factors, problem, first, stop, num_rows, num_prototypes,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum of p g / sum_k p g [BLOCK_K] over the rows from first to stop."""
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(first, stop, BLOCK_N, num_stages=STAGES):
        local = tl.arange(0, BLOCK_N)
        inside = (local < num_rows - start)[:, None] & (k < num_prototypes)[None, :]
        block_ptr = kept_ptr + (problem * num_rows + start) * num_prototypes
        offsets = local[:, None] * num_prototypes + k[None, :]
        kept = tl.load(block_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        terms = kept * factors[None, :]
        row_sum = tl.sum(terms, 1)
        # a row that is all -inf adds nothing, as rows outside the matrix do
        total += tl.sum(terms * tl.where(row_sum == 0, 0.0, 1 / row_sum)[:, None], 0)
    return total
