"""Sinkhorn sweeps over stored scores [A, N, K], a program holding whole rows of K scores.

In small problems a sweep begins by taking the step of the potentials that the sweep before left,
so that T iterations are T + 1 launches, the one that writes the codes included.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.kept_rows import Kept, kept_factors, kept_sums
from swav_kernels.triton_kernels.launch import (
    LONGEST_SUM,
    Tiles,
    alignment,
    log2_scale,
    power_of_two,
    split,
    target_of,
)
from swav_kernels.triton_kernels.potentials import Pending, pending_potentials
from swav_kernels.triton_kernels.reduce import LOG2E, aligned, finite_shift
from swav_kernels.triton_kernels.scores import score_tile

LONGEST_ROW = 16384  # prototypes of one row in one program's registers
STREAMED_ROW = 4096  # prototypes at a time of a longer row

# Every program that takes a step reads the P partial sums of all K prototypes again from the L2
# cache: P * K * 4 bytes, on paper 2 us for 16 * 3000, against the 2 to 5 us of a launch. With P
# programs a problem each has 1 / P of the rows besides, hence the bound on those.
MOST_FOLDED = 16  # partial sums
LONGEST_FOLDED = 16  # blocks of rows of a program that leaves them
LONGEST_FOLDED_ROW = 4096  # prototypes; their offsets take the registers of a longer row
FOLDED_FILL = 128  # programs that write codes: more would read the sums more often


@triton.jit
def _sweep_kernel(
    scores_ptr, weights_ptr,
    partial_max_ptr, partial_sum_ptr, f_ptr, log_r_ptr, num_partials,  # Pending
    out_f_ptr,  # [A, K], where f is a step away and asked for
    sums_ptr, codes_ptr,  # [P, A, K] and [A, N, K], or None; codes may be the scores
    kept_ptr, kept_f_ptr,  # Kept, or None
    num_rows, num_prototypes, rows_per_program, scale,
    ALIGN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """softmax_k(s / epsilon + f) of the program's samples, summed per prototype or written."""
    part, problem = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_prototypes = aligned(num_prototypes, ALIGN)
    k = tl.arange(0, BLOCK_K)
    f = pending_potentials(
        partial_max_ptr, partial_sum_ptr, f_ptr, log_r_ptr, num_partials,
        problem, tl.num_programs(1), num_prototypes, k, BLOCK_P, BLOCK_K,
    )  # fmt: skip
    if out_f_ptr is not None:
        writes = k < tl.where(part == 0, num_prototypes, 0)
        tl.store(out_f_ptr + problem * num_prototypes + k, f, mask=writes)
    first = part * rows_per_program
    stop = min(first + rows_per_program, num_rows)
    stop_of_scores = stop  # the rows beyond are read as they were kept: all, or none
    if kept_ptr is not None:
        kept_f = tl.load(
            kept_f_ptr + problem * num_prototypes + k, k < num_prototypes, other=float("-inf")
        )
        factors, in_range = kept_factors(f, kept_f)
        stop_of_scores = tl.where(in_range, first, stop)
    total = _sums(
        scores_ptr, weights_ptr, codes_ptr, f, sums_ptr is None, problem, first, stop_of_scores,
        num_rows, num_prototypes, scale, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip
    if kept_ptr is not None:
        total += kept_sums(
            kept_ptr, factors, problem, stop_of_scores, stop, num_rows, num_prototypes,
            BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
    if sums_ptr is not None:
        out = (part * tl.num_programs(1) + problem) * num_prototypes + k
        tl.store(sums_ptr + out, total, mask=k < num_prototypes)


@triton.jit
def _sums(
    scores_ptr, weights_ptr, codes_ptr, f, EMPTY_IS_NAN: tl.constexpr, problem, first, stop,
    num_rows, num_prototypes, scale,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum of the codes [BLOCK_K] over the rows from first to stop, which are written if asked for.

    A row that is all -inf adds nothing, as rows outside the matrix do; else its codes are NaN.
    """
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(first, stop, BLOCK_N, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_N)
        logits = (f * LOG2E)[None, :] + scale * score_tile(
            scores_ptr, None, problem, start, 0, num_rows, num_prototypes,
            0, "ieee", BLOCK_N, BLOCK_K, 16,
        )  # fmt: skip
        terms = tl.exp2(logits - finite_shift(tl.max(logits, 1))[:, None])
        row_sum = tl.sum(terms, 1)
        shares = 1 / row_sum
        if not EMPTY_IS_NAN:
            shares = tl.where(row_sum == 0, 0.0, shares)
        if codes_ptr is not None:
            inside = (rows < num_rows)[:, None] & (k < num_prototypes)[None, :]
            offsets = (problem * num_rows + rows)[:, None] * num_prototypes + k[None, :]
            codes = (terms * shares[:, None]).to(codes_ptr.dtype.element_ty)
            tl.store(codes_ptr + offsets, codes, mask=inside)
        if weights_ptr is not None:
            inside = rows < num_rows
            shares *= tl.load(weights_ptr + problem * num_rows + rows, inside, other=0.0)
        total += tl.sum(terms * shares[:, None], 0)
    return total


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


def most_folded(scores: Tensor) -> int | None:
    """Partial sums that each program may add up by itself, or None where a launch should do it."""
    _, num_rows, num_prototypes = scores.shape
    num_blocks = triton.cdiv(num_rows, row_tiles(num_prototypes, target_of(scores.device)).block_n)
    fits = num_prototypes <= LONGEST_FOLDED_ROW and num_blocks <= MOST_FOLDED * LONGEST_FOLDED
    return MOST_FOLDED if fits else None


def keep(scores: Tensor) -> Kept | None:
    """Memory for what later sweeps read instead; None where none of them would."""
    num_prototypes = scores.shape[2]
    tiles = row_tiles(num_prototypes, target_of(scores.device))
    if scores.dtype != torch.float32 or num_prototypes > tiles.block_k:
        return None
    return Kept(torch.empty_like(scores, dtype=torch.bfloat16))


def sweep(
    scores: Tensor,
    pending: Pending,
    sample_weights: Tensor | None,
    epsilon: float,
    tiles: Tiles,
    kept: Kept | None = None,
) -> Pending:
    """Sum the codes per prototype: one launch where the step before is folded in, else two."""
    num_problems, num_rows, num_prototypes = scores.shape
    most = None if pending.sums is None else most_folded(scores)
    if most is None:
        pending = Pending(pending.settle(), log_r=pending.log_r)
    num_parts, blocks_each = split(
        triton.cdiv(num_rows, tiles.block_n),
        num_problems,
        tiles.fill,
        longest=LONGEST_SUM if most is None else LONGEST_FOLDED,
        most=most,
    )
    shape = num_parts, num_problems, num_prototypes
    sums = torch.empty(shape, dtype=torch.float32, device=scores.device)
    # not in the place of the f that this launch reads
    out_f = None if most is None else torch.empty_like(sums[0])
    writes_kept = kept is not None and kept.f is None
    _launch(
        scores, pending, sample_weights, out_f, sums,
        kept.codes if kept is not None and writes_kept else None,
        None if writes_kept else kept, epsilon, tiles, num_parts, blocks_each,
    )  # fmt: skip
    f = pending.settle() if out_f is None else out_f
    if kept is not None and writes_kept:
        kept.f = f
    return pending.after(f, sums)


def write_codes(
    scores: Tensor, pending: Pending, epsilon: float, out: Tensor, tiles: Tiles
) -> None:
    """Write softmax_k(s / epsilon + f), the step to f folded in."""
    num_problems, num_rows, _ = scores.shape
    num_blocks = triton.cdiv(num_rows, tiles.block_n)
    num_parts, each = split(num_blocks, num_problems, min(tiles.fill, FOLDED_FILL))
    _launch(scores, pending, None, None, None, out, None, epsilon, tiles, num_parts, each)


def _launch(
    scores: Tensor,
    pending: Pending,
    sample_weights: Tensor | None,
    out_f: Tensor | None,
    sums: Tensor | None,
    codes: Tensor | None,
    kept: Kept | None,
    epsilon: float,
    tiles: Tiles,
    num_parts: int,
    blocks_each: int,
) -> None:
    num_problems, num_rows, num_prototypes = scores.shape
    _sweep_kernel[(num_parts, num_problems)](
        **pending.arguments(tiles.block_n),
        scores_ptr=scores,
        weights_ptr=sample_weights,
        out_f_ptr=out_f,
        sums_ptr=sums,
        codes_ptr=codes,
        kept_ptr=None if kept is None else kept.codes,
        kept_f_ptr=None if kept is None else kept.f,
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
