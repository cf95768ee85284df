"""Sinkhorn over stored scores [A, N, K]: each sweep reads the matrix once and all problems run in
one launch, as long as a row of K scores fits on a multiprocessor; longer rows are read twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels import columns
from swav_kernels.triton_kernels import potentials as steps
from swav_kernels.triton_kernels.kept_rows import FEWEST_ITERATIONS, Kept
from swav_kernels.triton_kernels.launch import (
    Tiles,
    alignment,
    log2_scale,
    on_its_device,
    power_of_two,
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
from swav_kernels.triton_kernels.whole_rows import keep, most_folded, row_tiles, sweep, write_codes


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


@on_its_device
def potentials(
    scores: Tensor,
    sample_weights: Tensor | None,
    log_r: Tensor | None,
    epsilon: float,
    iterations: int,
    precision: str,
) -> Tensor:
    """Return f [A, K] after T iterations; "bfloat16" rounds what is kept between many of them."""
    if scores.numel() == 0:
        return _per_prototype(scores, -torch.inf)
    is_plain = sample_weights is None and log_r is None
    kept = None
    if precision == "bfloat16" and is_plain and iterations >= FEWEST_ITERATIONS:
        kept = keep(scores)
    return steps.iterate(
        _partial_stats(scores, sample_weights, epsilon, most_folded(scores)),
        lambda pending: _sweep(scores, pending, sample_weights, epsilon, kept),
        log_r,
        iterations,
    )


@on_its_device
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, out: Tensor) -> None:
    """Write soft codes [A, N, K] after T > 0 iterations, without weights; `out` may be `scores`."""
    most = most_folded(scores)
    if scores.numel() == 0 or most is None:
        f = potentials(scores, None, None, epsilon, iterations, "float32")
        codes(scores, f, epsilon, False, True, out)
        return
    stats = _partial_stats(scores, None, epsilon, most)
    pending = steps.sweeps(
        stats, lambda pending: _sweep(scores, pending, None, epsilon), None, iterations
    )
    # a softmax over all prototypes spreads NaN, as the potentials' own last step would
    tiles = row_tiles(scores.shape[2], target_of(scores.device))
    write_codes(scores, pending, epsilon, out, tiles)


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
    sums = _sweep(scores, steps.Pending(f), sample_weights, epsilon).sums
    assert sums is not None
    return sum_partials(sums)


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
    scores: Tensor, sample_weights: Tensor | None, epsilon: float, most: int | None = None
) -> tuple[Tensor, Tensor]:
    tiles = column_tiles(scores.shape[2], target_of(scores.device))
    return columns.column_stats(Scores(scores), sample_weights, epsilon, tiles, most)


def _sweep(
    scores: Tensor,
    pending: steps.Pending,
    sample_weights: Tensor | None,
    epsilon: float,
    kept: Kept | None = None,
) -> steps.Pending:
    num_prototypes, target = scores.shape[2], target_of(scores.device)
    tiles = row_tiles(num_prototypes, target)
    if num_prototypes <= tiles.block_k:
        return sweep(scores, pending, sample_weights, epsilon, tiles, kept)
    f = pending.settle()
    rows = row_sums(Scores(scores), f, epsilon, tiles)
    tiles = column_tiles(num_prototypes, target)
    sums = columns.column_sums(Scores(scores), f, rows, sample_weights, epsilon, tiles)
    return pending.after(f, sums)
