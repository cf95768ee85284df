"""What codes look like, row by row, from sums that the loss held anyway."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.stats import CodeStatistics
from swav_kernels.triton_kernels.reduce import LN2, finite_shift
from swav_kernels.triton_kernels.rows import RowSums
from swav_kernels.triton_kernels.splits import combined_index, combined_sum


@triton.jit
def _code_statistics_kernel(
    max_ptr, sum_ptr, deviation_ptr, nearest_ptr, nearest_score_ptr, num_splits,  # RowSums
    out_nearest_ptr, entropy_ptr, max_code_ptr,  # [A * B]
    num_rows,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of all assign crops in one line; without deviations the codes are one-hot."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    stride = tl.cast(num_rows, tl.int64)
    maximum, total = combined_sum(max_ptr, sum_ptr, rows, inside, stride, num_splits, BLOCK)
    if deviation_ptr is None:
        max_code = tl.where(total > 0, 1.0, float("nan"))
        entropy = max_code - 1
    else:
        max_code = 1 / total
        shift = finite_shift(maximum)
        deviation = tl.zeros([BLOCK], tl.float32)
        for part in range(num_splits):
            offsets = part * stride + rows
            part_max = tl.load(max_ptr + offsets, mask=inside, other=float("-inf"))
            part_sum = tl.load(sum_ptr + offsets, mask=inside, other=0.0)
            part_deviation = tl.load(deviation_ptr + offsets, mask=inside, other=0.0)
            moved = tl.where(part_sum > 0, part_max - shift, 0.0)
            deviation += tl.exp2(part_max - shift) * (part_deviation + moved * part_sum)
        # -sum q ln q, each term against the maximum: nothing large cancels
        entropy = (tl.log2(total) - deviation / total) * LN2
    nearest = combined_index(
        nearest_score_ptr, nearest_ptr, rows, inside, stride, num_splits, BLOCK
    )
    tl.store(out_nearest_ptr + rows, nearest.to(tl.int64), mask=inside)
    tl.store(entropy_ptr + rows, entropy, mask=inside)
    tl.store(max_code_ptr + rows, max_code, mask=inside)


BLOCK_ROWS = 128


def code_statistics(q: RowSums, code_sums: Tensor) -> CodeStatistics:
    """Statistics of the codes [A, B, K] whose row sums are q and whose sums over b are given."""
    assert q.nearest is not None
    _, num_crops, num_samples = q.maximum.shape
    shape, device = (num_crops, num_samples), q.maximum.device
    nearest = torch.empty(shape, dtype=torch.int64, device=device)
    entropy, max_code = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    _code_statistics_kernel[(triton.cdiv(nearest.numel(), BLOCK_ROWS),)](
        max_ptr=q.maximum,
        sum_ptr=q.total,
        deviation_ptr=q.deviation,
        nearest_ptr=q.nearest,
        nearest_score_ptr=q.nearest_score,
        num_splits=q.num_splits,
        out_nearest_ptr=nearest,
        entropy_ptr=entropy,
        max_code_ptr=max_code,
        num_rows=nearest.numel(),
        BLOCK=BLOCK_ROWS,
    )
    return CodeStatistics(nearest, entropy, max_code, code_sums)
