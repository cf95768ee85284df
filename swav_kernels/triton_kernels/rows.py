"""Sums over prototypes, one a sample: softmax normalisers, barycentres and what codes look like.

One streaming pass with a running maximum, as in attention: `values = softmax(logits) @ prototypes`
is rescaled whenever the maximum grows. The prototypes may be split over S programs; whoever reads
the results combines the splits (splits.py), so that nothing waits for another launch.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import Tiles, log2_scale, split
from swav_kernels.triton_kernels.reduce import (
    LOG2E,
    aligned,
    finite_shift,
    first_index,
    load_block,
    online_sum,
    product,
)
from swav_kernels.triton_kernels.scores import Scores, score_tile

MOST_SPLITS = 8  # each costs a read by whoever combines them


@triton.jit
def _row_sums_kernel(
    source_ptr, prototypes_ptr, f_ptr, others_ptr,
    max_ptr, sum_ptr, index_ptr, values_ptr, deviation_ptr, nearest_ptr, nearest_score_ptr,
    num_rows, num_prototypes, prototypes_per_split, num_dim_tiles, scale,
    DIM: tl.constexpr, VALUES_DIM: tl.constexpr, PRECISION: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    STEP_D: tl.constexpr,
):  # fmt: skip
    """One block of samples, one split of the prototypes; RowSums says what is written."""
    problem = tl.program_id(2).to(tl.int64)
    part, dim_tile = tl.program_id(1) // num_dim_tiles, tl.program_id(1) % num_dim_tiles
    num_prototypes = aligned(num_prototypes, ALIGN)
    first_row = tl.program_id(0) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_N)
    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    index = tl.zeros([BLOCK_N], tl.int32)
    deviation = tl.zeros([BLOCK_N], tl.float32)
    nearest = tl.zeros([BLOCK_N], tl.int32)
    nearest_score = tl.full([BLOCK_N], float("-inf"), tl.float32)
    d = dim_tile * BLOCK_D + tl.arange(0, BLOCK_D)
    # if one tile holds all dimensions, it serves both products
    IS_SHARED: tl.constexpr = values_ptr is not None and others_ptr is None
    ONE_TILE: tl.constexpr = IS_SHARED and DIM <= STEP_D and STEP_D == BLOCK_D
    if values_ptr is not None:
        values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if ONE_TILE:
        z = load_block(source_ptr + problem * num_rows * DIM, first_row, num_rows, d, DIM, BLOCK_N)

    first = part * prototypes_per_split
    for start in range(first, min(first + prototypes_per_split, num_prototypes), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if ONE_TILE:
            c = load_block(prototypes_ptr, start, num_prototypes, d, DIM, BLOCK_K)
            scores = product(z, tl.trans(c), tl.zeros([BLOCK_N, BLOCK_K], tl.float32), PRECISION)
            scores = tl.where((k < num_prototypes)[None, :], scores, float("-inf"))
        else:
            scores = score_tile(
                source_ptr, prototypes_ptr, problem, first_row, start, num_rows, num_prototypes,
                DIM, PRECISION, BLOCK_N, BLOCK_K, STEP_D,
            )  # fmt: skip
        logits = scale * scores
        if f_ptr is not None:
            f = tl.load(f_ptr + problem * num_prototypes + k, k < num_prototypes, other=0.0)
            logits += (f * LOG2E)[None, :]
        old_maximum, old_total = maximum, total
        maximum, total, rescale, terms = online_sum(maximum, total, logits, 1)
        if index_ptr is not None:
            found = first_index(logits, maximum, k, num_prototypes)
            index = tl.where(maximum > old_maximum, found, index)
        if deviation_ptr is not None:
            shift = finite_shift(maximum)
            moved = tl.where(old_total > 0, old_maximum - shift, 0.0)
            far = tl.where(terms > 0, terms * (logits - shift[:, None]), 0.0)
            deviation = rescale * (deviation + moved * old_total) + tl.sum(far, 1)
        if nearest_ptr is not None:
            best = tl.maximum(nearest_score, tl.max(scores, 1))
            found = first_index(scores, best, k, num_prototypes)
            nearest = tl.where(best > nearest_score, found, nearest)
            nearest_score = best
        if values_ptr is not None:
            if others_ptr is not None:
                c = load_block(others_ptr, start, num_prototypes, d, VALUES_DIM, BLOCK_K)
            elif not ONE_TILE:
                c = load_block(prototypes_ptr, start, num_prototypes, d, DIM, BLOCK_K)
            values = product(terms, c, values * rescale[:, None], PRECISION)

    out = (part * tl.num_programs(2) + problem) * num_rows + rows
    # all tiles of the dimensions know the same sums, and the first writes them
    writes = rows < tl.where(dim_tile == 0, num_rows, 0)
    tl.store(max_ptr + out, maximum, mask=writes)
    tl.store(sum_ptr + out, total, mask=writes)
    if index_ptr is not None:
        tl.store(index_ptr + out, index, mask=writes)
    if deviation_ptr is not None:
        tl.store(deviation_ptr + out, deviation, mask=writes)
    if nearest_ptr is not None:
        tl.store(nearest_ptr + out, nearest, mask=writes)
        tl.store(nearest_score_ptr + out, nearest_score, mask=writes)
    if values_ptr is not None:
        inside = (rows < num_rows)[:, None] & (d < VALUES_DIM)[None, :]
        tl.store(values_ptr + out[:, None] * VALUES_DIM + d[None, :], values, mask=inside)


@dataclass(frozen=True)
class RowSums:
    """What each split knows of each row, [S, A, N]; logits t have base 2."""

    num_splits: int
    maximum: Tensor  # max_k t
    total: Tensor  # sum_k exp2(t - maximum)
    index: Tensor | None  # the first k with t = maximum
    values: Tensor | None  # [S, A, N, D]: sum_k exp2(t - maximum) c_k
    deviation: Tensor | None  # sum_k exp2(t - maximum) (t - maximum)
    nearest: Tensor | None  # the first k with the largest score
    nearest_score: Tensor | None  # that score


def row_sums(
    scores: Scores,
    f: Tensor | None,
    temperature: float,
    tiles: Tiles,
    *,
    index: bool = False,
    values: bool = False,
    others: Tensor | None = None,
    deviation: bool = False,
    nearest: bool = False,
) -> RowSums:
    """Stream over the prototypes: t = log2(e) (s / temperature + f); N > 0.

    Values are sums of the scores' prototypes, or of `others` [K, D] that stand for them.
    """
    values_dim = scores.dim if others is None else others.shape[1]
    num_row_blocks = triton.cdiv(scores.num_rows, tiles.block_n)
    num_dim_tiles = triton.cdiv(values_dim, tiles.block_d) if values else 1
    num_splits, blocks_each = split(
        triton.cdiv(scores.num_prototypes, tiles.block_k),
        num_row_blocks * num_dim_tiles * scores.num_problems,
        tiles.fill,
        most=MOST_SPLITS,
    )
    shape = num_splits, scores.num_problems, scores.num_rows

    def new(dtype: torch.dtype, *dims: int) -> Tensor:
        return torch.empty(*shape, *dims, dtype=dtype, device=scores.source.device)

    sums = RowSums(
        num_splits,
        maximum=new(torch.float32),
        total=new(torch.float32),
        index=new(torch.int32) if index else None,
        values=new(torch.float32, values_dim) if values else None,
        deviation=new(torch.float32) if deviation else None,
        nearest=new(torch.int32) if nearest else None,
        nearest_score=new(torch.float32) if nearest else None,
    )
    _row_sums_kernel[(num_row_blocks, num_splits * num_dim_tiles, scores.num_problems)](
        **scores.arguments(tiles),
        VALUES_DIM=values_dim,
        BLOCK_D=tiles.block_d,
        f_ptr=f,
        others_ptr=others,
        max_ptr=sums.maximum,
        sum_ptr=sums.total,
        index_ptr=sums.index,
        values_ptr=sums.values,
        deviation_ptr=sums.deviation,
        nearest_ptr=sums.nearest,
        nearest_score_ptr=sums.nearest_score,
        prototypes_per_split=blocks_each * tiles.block_k,
        num_dim_tiles=num_dim_tiles,
        scale=log2_scale(temperature),
    )
    return sums
