"""Sinkhorn over stored scores [A, N, K]: each sweep reads the matrix once and all problems run in
one launch, as long as a row of K scores fits on a multiprocessor; longer rows are read twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels import columns
from swav_kernels.triton_kernels import potentials as steps
from swav_kernels.triton_kernels.launch import (
    LONGEST_SUM,
    Tiles,
    alignment,
    log2_scale,
    on_its_device,
    power_of_two,
    split,
    target_of,
)
from swav_kernels.triton_kernels.reduce import (
    LOG2E,
    aligned,
    finite_shift,
    first_index,
    online_sum,
    sum_partials,
)
from swav_kernels.triton_kernels.rows import row_sums
from swav_kernels.triton_kernels.scores import Scores, score_tile

LONGEST_ROW = 16384  # prototypes of one row in one program's registers
STREAMED_ROW = 4096  # prototypes at a time of a longer row


@triton.jit
def _sweep_kernel(
    scores_ptr, f_ptr, weights_ptr,
    sums_ptr,  # [P, A, K]
    num_rows, num_prototypes, rows_per_program, scale,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Whole rows: softmax_k(s / epsilon + f) of the program's samples, summed per prototype."""
    part, problem = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_prototypes = aligned(num_prototypes, ALIGN)
    k = tl.arange(0, BLOCK_K)
    f = tl.load(f_ptr + problem * num_prototypes + k, k < num_prototypes, other=0.0) * LOG2E
    total = tl.zeros([BLOCK_K], tl.float32)
    first = part * rows_per_program
    stop = min(first + rows_per_program, num_rows)
    for start in tl.range(first, stop, BLOCK_N, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_N)
        logits = f[None, :] + scale * score_tile(
            scores_ptr, None, problem, start, 0, num_rows, num_prototypes,
            0, "ieee", BLOCK_N, BLOCK_K, 16,
        )  # fmt: skip
        terms = tl.exp2(logits - finite_shift(tl.max(logits, 1))[:, None])
        row_sum = tl.sum(terms, 1)
        weights = tl.full([BLOCK_N], 1.0, tl.float32)
        if weights_ptr is not None:
            weights = tl.load(weights_ptr + problem * num_rows + rows, rows < num_rows, other=0.0)
        # a row that is all -inf adds nothing, as rows outside the matrix do
        total += tl.sum(terms * tl.where(row_sum == 0, 0.0, weights / row_sum)[:, None], 0)
    out = (part * tl.num_programs(1) + problem) * num_prototypes + k
    tl.store(sums_ptr + out, total, mask=k < num_prototypes)


@triton.jit
def _codes_kernel(
    scores_ptr, f_ptr, codes_ptr,
    num_rows, num_prototypes, scale,
    HARD: tl.constexpr, NORMALIZED: tl.constexpr, ONE_TILE: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """softmax_k(s / epsilon + f), its one-hot, or exp(s / epsilon + f); codes may be the scores."""
    problem = tl.program_id(1).to(tl.int64)
    num_prototypes = aligned(num_prototypes, ALIGN)
    row = tl.program_id(0) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_N)
    # a loop of one known step disappears, and its loads serve both passes
    stop = BLOCK_K if ONE_TILE else num_prototypes
    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    index = tl.zeros([BLOCK_N], tl.int32)
    if HARD or NORMALIZED:
        for start in range(0, stop, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            logits = _logits(
                scores_ptr, f_ptr, problem, row, start, num_rows, num_prototypes, scale,
                BLOCK_N, BLOCK_K,
            )  # fmt: skip
            old_maximum = maximum
            maximum, total, _, _ = online_sum(maximum, total, logits, 1)
            if HARD:
                found = first_index(logits, maximum, k, num_prototypes)
                index = tl.where(maximum > old_maximum, found, index)
    shift = finite_shift(maximum)
    for start in range(0, stop, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if HARD:
            codes = tl.where(k[None, :] == index[:, None], 1.0, 0.0)
            codes = tl.where((total > 0)[:, None], codes, float("nan"))
        else:
            logits = _logits(
                scores_ptr, f_ptr, problem, row, start, num_rows, num_prototypes, scale,
                BLOCK_N, BLOCK_K,
            )  # fmt: skip
            if NORMALIZED:
                codes = tl.exp2(logits - shift[:, None]) / total[:, None]
            else:
                codes = tl.exp2(logits)
        inside = (rows < num_rows)[:, None] & (k < num_prototypes)[None, :]
        offsets = (problem * num_rows + rows)[:, None] * num_prototypes + k[None, :]
        tl.store(codes_ptr + offsets, codes, mask=inside)


@triton.jit
def _logits(
    scores_ptr, f_ptr, problem, row, start, num_rows, num_prototypes, scale,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """log2(e) (s / epsilon + f) [BLOCK_N, BLOCK_K]."""
    k = start + tl.arange(0, BLOCK_K)
    f = tl.load(f_ptr + problem * num_prototypes + k, k < num_prototypes, other=0.0)
    scores = score_tile(
        scores_ptr, None, problem, row, start, num_rows, num_prototypes,
        0, "ieee", BLOCK_N, BLOCK_K, 16,
    )  # fmt: skip
    return scale * scores + (f * LOG2E)[None, :]


def column_tiles(num_prototypes: int, target: str) -> Tiles:
    """Blocks for sums over samples: narrow enough for many programs, whole cache lines."""
    if target == "interpreter":
        return Tiles(128, power_of_two(num_prototypes, 16, 4096), fill=1)
    return Tiles(32, power_of_two(num_prototypes, 16, 128)).on(target)


def row_tiles(num_prototypes: int, target: str) -> Tiles:
    """Blocks for whole rows, at most LONGEST_ROW long; longer rows are streamed."""
    if target == "interpreter":
        return Tiles(64, power_of_two(num_prototypes, 16, LONGEST_ROW), fill=1)
    if num_prototypes > LONGEST_ROW:
        return Tiles(2, STREAMED_ROW, num_warps=8).on(target)
    block_k = power_of_two(num_prototypes, 128, LONGEST_ROW)
    # 8192 scores a program: 32 registers a thread
    block_n = power_of_two(8192 // block_k, 1, 32)
    return Tiles(block_n, block_k, num_warps=8 if block_k <= 8192 else 16).on(target)


@on_its_device
def potentials(
    scores: Tensor,
    sample_weights: Tensor | None,
    log_r: Tensor | None,
    epsilon: float,
    iterations: int,
    precision: str,
) -> Tensor:
    """Return f [A, K] after T iterations; nothing is kept between them that could be rounded."""
    if scores.numel() == 0:
        return _per_prototype(scores, -torch.inf)
    return steps.iterate(
        _partial_stats(scores, sample_weights, epsilon),
        lambda f: _partial_sums(scores, f, sample_weights, epsilon),
        log_r,
        iterations,
    )


@on_its_device
def column_stats(
    scores: Tensor, sample_weights: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return max_b t and sum_b exp(t - max) of t = s / epsilon + log w, [A, K] each."""
    if scores.numel() == 0:
        return _per_prototype(scores, -torch.inf), _per_prototype(scores, 0)
    return steps.combine_stats(*_partial_stats(scores, sample_weights, epsilon))


@on_its_device
def column_sums(scores: Tensor, f: Tensor, sample_weights: Tensor | None, epsilon: float) -> Tensor:
    """Return sum_b w_b softmax_k(s_b / epsilon + f) [A, K]."""
    if scores.numel() == 0:
        return _per_prototype(scores, 0)
    return sum_partials(_partial_sums(scores, f, sample_weights, epsilon))


@on_its_device
def codes(
    scores: Tensor, f: Tensor, epsilon: float, hard: bool, normalized: bool, out: Tensor
) -> None:
    """Write softmax_k(s / epsilon + f), its one-hot or its numerator to out [A, N, K]."""
    if scores.numel() == 0:
        return
    num_problems, num_rows, num_prototypes = scores.shape
    tiles = row_tiles(num_prototypes, target_of(scores.device))
    _codes_kernel[(triton.cdiv(num_rows, tiles.block_n), num_problems)](
        scores_ptr=scores,
        f_ptr=f,
        codes_ptr=out,
        num_rows=num_rows,
        num_prototypes=num_prototypes,
        scale=log2_scale(epsilon),
        HARD=hard,
        NORMALIZED=normalized,
        ONE_TILE=num_prototypes <= tiles.block_k,
        ALIGN=alignment(num_prototypes),
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        **tiles.options,
    )


def _per_prototype(scores: Tensor, value: float) -> Tensor:
    shape = scores.shape[0], scores.shape[2]
    return torch.full(shape, value, dtype=torch.float32, device=scores.device)


def _partial_stats(
    scores: Tensor, sample_weights: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    tiles = column_tiles(scores.shape[2], target_of(scores.device))
    return columns.column_stats(Scores(scores), sample_weights, epsilon, tiles)


def _partial_sums(
    scores: Tensor, f: Tensor, sample_weights: Tensor | None, epsilon: float
) -> Tensor:
    num_problems, num_rows, num_prototypes = scores.shape
    target = target_of(scores.device)
    tiles = row_tiles(num_prototypes, target)
    if num_prototypes > tiles.block_k:
        rows = row_sums(Scores(scores), f, epsilon, tiles)
        tiles = column_tiles(num_prototypes, target)
        return columns.column_sums(Scores(scores), f, rows, sample_weights, epsilon, tiles)
    num_parts, blocks_each = split(
        triton.cdiv(num_rows, tiles.block_n), num_problems, tiles.fill, longest=LONGEST_SUM
    )
    sums = torch.empty(
        num_parts, num_problems, num_prototypes, dtype=torch.float32, device=scores.device
    )
    _sweep_kernel[(num_parts, num_problems)](
        scores_ptr=scores,
        f_ptr=f,
        weights_ptr=sample_weights,
        sums_ptr=sums,
        num_rows=num_rows,
        num_prototypes=num_prototypes,
        rows_per_program=blocks_each * tiles.block_n,
        scale=log2_scale(epsilon),
        ALIGN=alignment(num_prototypes),
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        STAGES=tiles.num_stages,
        **tiles.options,
    )
    return sums
