"""Combining what the S splits of `row_sums` know of the same rows, in their order.

`rows` are offsets into one split's [A * N] rows, `stride` = A * N; NaN in any split comes through.
"""

import triton
import triton.language as tl

from swav_kernels.triton_kernels.reduce import finite_shift


@triton.jit
def combined_sum(max_ptr, sum_ptr, rows, inside, stride, num_splits, BLOCK_N: tl.constexpr):
    """Maximum and sum_k exp2(t - maximum) over all prototypes; (-inf, 0) outside."""
    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for part in range(num_splits):
        part_max = tl.load(max_ptr + part * stride + rows, mask=inside, other=float("-inf"))
        part_sum = tl.load(sum_ptr + part * stride + rows, mask=inside, other=0.0)
        new_maximum = tl.maximum(maximum, part_max)
        shift = finite_shift(new_maximum)
        total = total * tl.exp2(maximum - shift) + part_sum * tl.exp2(part_max - shift)
        maximum = new_maximum
    return maximum, total


@triton.jit
def combined_log(max_ptr, sum_ptr, rows, inside, stride, num_splits, BLOCK_N: tl.constexpr):
    """log2 sum_k exp2(t); +inf for a row that is all -inf, so that its softmax adds 0."""
    maximum, total = combined_sum(max_ptr, sum_ptr, rows, inside, stride, num_splits, BLOCK_N)
    return tl.where(total == 0, float("inf"), maximum + tl.log2(total))


@triton.jit
def combined_index(max_ptr, index_ptr, rows, inside, stride, num_splits, BLOCK_N: tl.constexpr):
    """The first index whose value is the largest of all splits; 0 where all is NaN or -inf."""
    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    index = tl.zeros([BLOCK_N], tl.int32)
    for part in range(num_splits):
        part_max = tl.load(max_ptr + part * stride + rows, mask=inside, other=float("-inf"))
        part_index = tl.load(index_ptr + part * stride + rows, mask=inside, other=0)
        index = tl.where(part_max > maximum, part_index, index)
        maximum = tl.maximum(maximum, part_max)
    return index


@triton.jit
def combined_values(
    values_ptr, max_ptr, maximum, total, rows, d, inside, stride, num_splits,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """softmax(t) @ prototypes [BLOCK_N, BLOCK_D], from the combined maximum and sum."""
    values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    shift = finite_shift(maximum)
    mask = inside[:, None] & (d < DIM)[None, :]
    for part in range(num_splits):
        part_rows = part * stride + rows
        part_max = tl.load(max_ptr + part_rows, mask=inside, other=float("-inf"))
        offsets = part_rows.to(tl.int64)[:, None] * DIM + d[None, :]
        part_values = tl.load(values_ptr + offsets, mask=mask, other=0.0)
        values += part_values * tl.exp2(part_max - shift)[:, None]
    return values / total[:, None]
