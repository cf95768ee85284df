"""The swapped loss from scores stored in 16 bits, whose gradient takes their place.

One product makes the scores, one kernel reads each row of them once and leaves the gradient there,
two products make d_features and d_prototypes of it. These are 3 products a crop; the streamed
loss, which stores nothing, makes 4, and 3 more of an assign crop.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels import prototype_scores
from swav_kernels.triton_kernels.d_prototypes import place_of
from swav_kernels.triton_kernels.half_scores import HalfScores, half_scores
from swav_kernels.triton_kernels.launch import (
    Tiles,
    alignment,
    log2_scale,
    power_of_two,
    target_of,
)
from swav_kernels.triton_kernels.reduce import (
    LN2,
    LOG2E,
    aligned,
    finite_shift,
    sum_partials,
)
from swav_kernels.triton_kernels.scores import score_tile

LONGEST_ROW = 8192  # prototypes of one row in one program's registers
# Bytes of stored scores: from where the products that are saved should outweigh up to 3 further
# launches, to what a GPU can spare. Constants, for to ask for free memory is to wait for the GPU.
LEAST_BYTES, MOST_BYTES = 2**24, 2**32


def fits(features: Tensor, prototypes: Tensor, hard: bool, precision: str) -> bool:
    """Tell whether to store the scores of features [V, B, D].

    Only "bfloat16" allows halves. Hard codes need the very scores that the potentials are of: with
    fewer samples than prototypes these leave ties that rounding would break otherwise.
    """
    num_crops, num_samples, _ = features.shape
    num_prototypes = prototypes.shape[0]
    size = 2 * num_crops * num_samples * num_prototypes
    has_size = LEAST_BYTES <= size <= MOST_BYTES and num_prototypes <= LONGEST_ROW
    return precision == "bfloat16" and has_size and not hard


@triton.jit
def _stored_loss_kernel(
    scores_ptr,  # [V, B, K], float16, over the bounds of their rows and columns
    row_bounds_ptr, column_bounds_ptr,  # [V * B], [K]
    f_ptr,  # [A, K]
    d_scores_ptr,  # [V, B, K], bfloat16, in the place of the scores; or None
    loss_ptr,  # [row blocks]
    num_crops, num_samples, num_prototypes, p_scale, q_scale, d_scale,
    ASSIGN: tl.constexpr, ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All crops of some samples: n_v lse_v - sum of the codes of others times the logits."""
    num_prototypes = aligned(num_prototypes, ALIGN)
    row = tl.program_id(0) * BLOCK_N
    rows, k = row + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    column_bounds = tl.load(column_bounds_ptr + k, k < num_prototypes, other=1.0)
    all_codes = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for a in tl.static_range(len(ASSIGN)):
        scores = _scores(
            scores_ptr, row_bounds_ptr, column_bounds, ASSIGN[a], row,
            num_samples, num_prototypes, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        all_codes += _codes(scores, a, f_ptr, num_prototypes, q_scale, BLOCK_K)
    losses = tl.zeros([BLOCK_N], tl.float32)
    for crop in range(num_crops):
        scores = _scores(
            scores_ptr, row_bounds_ptr, column_bounds, crop, row,
            num_samples, num_prototypes, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        # a crop does not predict its own codes
        place = place_of(crop, ASSIGN)
        codes, num_targets = all_codes, len(ASSIGN) * 1.0
        if place >= 0:
            codes = all_codes - _codes(scores, place, f_ptr, num_prototypes, q_scale, BLOCK_K)
            num_targets = len(ASSIGN) - 1.0
        logits = p_scale * scores
        maximum = tl.max(logits, 1)
        terms = tl.exp2(logits - maximum[:, None])
        total = tl.sum(terms, 1)
        # outside a row a logit is -inf and a code 0
        dots = tl.sum(tl.where(codes == 0, 0.0, codes * logits), 1)
        losses += num_targets * (maximum + tl.log2(total)) - dots
        if d_scores_ptr is not None:
            d_scores = d_scale * (terms * (num_targets / total)[:, None] - codes)
            inside = (rows < num_samples)[:, None] & (k < num_prototypes)[None, :]
            offsets = (tl.cast(crop, tl.int64) * num_samples + rows)[:, None] * num_prototypes
            tl.store(d_scores_ptr + offsets + k[None, :], d_scores.to(tl.bfloat16), mask=inside)
    loss = tl.sum(tl.where(rows < num_samples, losses, 0.0), 0) * LN2
    tl.store(loss_ptr + tl.program_id(0), loss)


@triton.jit
def _scores(
    scores_ptr, row_bounds_ptr, column_bounds, crop, row, num_samples, num_prototypes,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Float32 scores [BLOCK_N, BLOCK_K] of one crop; -inf outside."""
    rows = row + tl.arange(0, BLOCK_N)
    offsets = tl.cast(crop, tl.int64) * num_samples + rows
    row_bounds = tl.load(row_bounds_ptr + offsets, rows < num_samples, other=1.0)
    scores = score_tile(
        scores_ptr, None, crop, row, 0, num_samples, num_prototypes,
        0, "ieee", BLOCK_N, BLOCK_K, 16,
    )  # fmt: skip
    return scores * row_bounds[:, None] * column_bounds[None, :]


@triton.jit
def _codes(scores, place, f_ptr, num_prototypes, scale, BLOCK_K: tl.constexpr):
    """Codes [BLOCK_N, BLOCK_K] of one assign crop from its scores."""
    k = tl.arange(0, BLOCK_K)
    f_row_ptr = f_ptr + place * tl.cast(num_prototypes, tl.int64)
    f = tl.load(f_row_ptr + k, k < num_prototypes, other=0.0) * LOG2E
    logits = scale * scores + f[None, :]
    terms = tl.exp2(logits - finite_shift(tl.max(logits, 1))[:, None])
    return terms / tl.sum(terms, 1)[:, None]


def tiles(num_prototypes: int, target: str) -> Tiles:
    """Blocks of whole rows, at most LONGEST_ROW long."""
    if target == "interpreter":
        return Tiles(64, power_of_two(num_prototypes, 16, LONGEST_ROW))
    block_k = power_of_two(num_prototypes, 128, LONGEST_ROW)
    return Tiles(power_of_two(8192 // block_k, 1, 32), block_k, num_warps=8).on(target)


def stored_loss(
    features: Tensor,
    prototypes: Tensor,
    f: Tensor,
    assign: tuple[int, ...],
    temperature: float,
    epsilon: float,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss [], d_features [V, B, D] and d_prototypes [K, D]; B > 0, K <= LONGEST_ROW."""
    num_crops, num_samples, dim = features.shape
    half = half_scores(features.view(-1, dim), prototypes)
    d_scores = half.scores.view(torch.bfloat16) if need_features or need_prototypes else None
    loss = _loss(half, d_scores, f, num_crops, num_samples, assign, temperature, epsilon)
    if d_scores is None:
        return loss, None, None
    d_features, d_prototypes = prototype_scores.gradients(
        d_scores, half.features.rows, half.prototypes.rows, need_features, need_prototypes
    )
    return loss, None if d_features is None else d_features.view(features.shape), d_prototypes


def _loss(
    half: HalfScores,
    d_scores: Tensor | None,
    f: Tensor,
    num_crops: int,
    num_samples: int,
    assign: tuple[int, ...],
    temperature: float,
    epsilon: float,
) -> Tensor:
    num_prototypes = f.shape[1]
    block = tiles(num_prototypes, target_of(f.device))
    num_blocks = triton.cdiv(num_samples, block.block_n)
    losses = torch.empty(num_blocks, dtype=torch.float32, device=f.device)
    weight = 1 / (len(assign) * (num_crops - 1) * num_samples)
    _stored_loss_kernel[(num_blocks,)](
        scores_ptr=half.scores,
        row_bounds_ptr=half.features.bounds,
        column_bounds_ptr=half.prototypes.bounds,
        f_ptr=f,
        d_scores_ptr=d_scores,
        loss_ptr=losses,
        num_crops=num_crops,
        num_samples=num_samples,
        num_prototypes=num_prototypes,
        p_scale=log2_scale(temperature),
        q_scale=log2_scale(epsilon),
        d_scale=weight / temperature,
        ASSIGN=assign,
        ALIGN=alignment(num_prototypes),
        BLOCK_N=block.block_n,
        BLOCK_K=block.block_k,
        **block.options,
    )
    return sum_partials(losses, weight)
