"""Sums over samples, one a prototype: the marginals of the Sinkhorn.

Programs own blocks of (samples x prototypes) and leave partial sums [P, A, K], which potentials.py
adds in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import LONGEST_SUM, Tiles, log2_scale, split
from swav_kernels.triton_kernels.reduce import LOG2E, aligned, online_sum
from swav_kernels.triton_kernels.rows import RowSums
from swav_kernels.triton_kernels.scores import Scores, score_tile
from swav_kernels.triton_kernels.splits import combined_index, combined_log


@triton.jit
def _column_stats_kernel(
    source_ptr, prototypes_ptr, weights_ptr,
    max_ptr, sum_ptr,  # [P, A, K]
    num_rows, num_prototypes, rows_per_program, scale,
    DIM: tl.constexpr, PRECISION: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STEP_D: tl.constexpr,
):  # fmt: skip
    """Per prototype over the samples: maximum of t = s / epsilon + log w, sum of exp(t - max)."""
    part, tile, problem = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_prototypes = aligned(num_prototypes, ALIGN)
    k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    maximum = tl.full([BLOCK_K], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    first = part * rows_per_program
    for start in range(first, min(first + rows_per_program, num_rows), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        logits = scale * score_tile(
            source_ptr, prototypes_ptr, problem, start, tile * BLOCK_K, num_rows, num_prototypes,
            DIM, PRECISION, BLOCK_N, BLOCK_K, STEP_D,
        )  # fmt: skip
        if weights_ptr is not None:
            weights = tl.load(weights_ptr + problem * num_rows + rows, rows < num_rows, other=1.0)
            logits += tl.log2(weights)[:, None]
        maximum, total, _, _ = online_sum(maximum, total, logits, 0)
    out = (part * tl.num_programs(2) + problem) * num_prototypes + k
    tl.store(max_ptr + out, maximum, mask=k < num_prototypes)
    tl.store(sum_ptr + out, total, mask=k < num_prototypes)


@triton.jit
def _column_sums_kernel(
    source_ptr, prototypes_ptr, f_ptr, weights_ptr,
    row_max_ptr, row_sum_ptr, row_index_ptr, num_splits,  # RowSums; with index codes are one-hot
    sums_ptr,  # [P, A, K]
    num_rows, num_prototypes, rows_per_program, scale,
    DIM: tl.constexpr, PRECISION: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STEP_D: tl.constexpr,
):  # fmt: skip
    """Per prototype over the samples: sum of w softmax_k(s / epsilon + f)."""
    part, tile, problem = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_prototypes = aligned(num_prototypes, ALIGN)
    k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    stride = tl.num_programs(2) * tl.cast(num_rows, tl.int64)
    f = tl.load(f_ptr + problem * num_prototypes + k, k < num_prototypes, other=0.0) * LOG2E
    total = tl.zeros([BLOCK_K], tl.float32)
    first = part * rows_per_program
    for start in range(first, min(first + rows_per_program, num_rows), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        inside = rows < num_rows
        offsets = problem * num_rows + rows
        log_sum = combined_log(
            row_max_ptr, row_sum_ptr, offsets, inside, stride, num_splits, BLOCK_N
        )
        if row_index_ptr is None:
            logits = f[None, :] + scale * score_tile(
                source_ptr, prototypes_ptr, problem, start, tile * BLOCK_K, num_rows,
                num_prototypes, DIM, PRECISION, BLOCK_N, BLOCK_K, STEP_D,
            )  # fmt: skip
            codes = tl.exp2(logits - log_sum[:, None])
        else:
            index = combined_index(
                row_max_ptr, row_index_ptr, offsets, inside, stride, num_splits, BLOCK_N
            )
            # 0 * log_sum: NaN where soft codes are
            codes = tl.where(k[None, :] == index[:, None], 1.0, 0.0) + 0 * log_sum[:, None]
        if weights_ptr is not None:
            codes *= tl.load(weights_ptr + offsets, inside, other=0.0)[:, None]
        total += tl.sum(tl.where(inside[:, None], codes, 0.0), 0)
    out = (part * tl.num_programs(2) + problem) * num_prototypes + k
    tl.store(sums_ptr + out, total, mask=k < num_prototypes)


def column_stats(
    scores: Scores,
    sample_weights: Tensor | None,
    epsilon: float,
    tiles: Tiles,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Partial (maximum of log2(e) t, sum) of every prototype, [P, A, K] each; N > 0, P <= most."""
    grid, rows_per_program = _grid(scores, tiles, most)
    maximum, sums = _partials(scores, grid[0]), _partials(scores, grid[0])
    _column_stats_kernel[grid](
        **scores.arguments(tiles),
        weights_ptr=sample_weights,
        max_ptr=maximum,
        sum_ptr=sums,
        rows_per_program=rows_per_program,
        scale=log2_scale(epsilon),
    )
    return maximum, sums


def column_sums(
    scores: Scores,
    f: Tensor,
    rows: RowSums,
    sample_weights: Tensor | None,
    epsilon: float,
    tiles: Tiles,
) -> Tensor:
    """Partial sums [P, A, K] of the codes, given the rows' normalisers; N > 0."""
    grid, rows_per_program = _grid(scores, tiles)
    sums = _partials(scores, grid[0])
    _column_sums_kernel[grid](
        **scores.arguments(tiles),
        f_ptr=f,
        weights_ptr=sample_weights,
        row_max_ptr=rows.maximum,
        row_sum_ptr=rows.total,
        row_index_ptr=rows.index,
        num_splits=rows.num_splits,
        sums_ptr=sums,
        rows_per_program=rows_per_program,
        scale=log2_scale(epsilon),
    )
    return sums


def _grid(
    scores: Scores, tiles: Tiles, most: int | None = None
) -> tuple[tuple[int, int, int], int]:
    num_tiles = triton.cdiv(scores.num_prototypes, tiles.block_k)
    num_parts, blocks_each = split(
        triton.cdiv(scores.num_rows, tiles.block_n),
        num_tiles * scores.num_problems,
        tiles.fill,
        longest=LONGEST_SUM,
        most=most,
    )
    return (num_parts, num_tiles, scores.num_problems), blocks_each * tiles.block_n


def _partials(scores: Scores, num_parts: int) -> Tensor:
    shape = num_parts, scores.num_problems, scores.num_prototypes
    return torch.empty(shape, dtype=torch.float32, device=scores.source.device)
