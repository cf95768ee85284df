"""Swapped cross-entropy of stored scores [V, B, K] and codes [A, B, K], with its gradient.

A program owns some samples of one crop and all their scores: it adds up the codes that this crop
predicts, and needs one log-sum-exp for all of them. A row that fits on a multiprocessor is read
once, a longer one twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import (
    Tiles,
    alignment,
    log2_scale,
    on_its_device,
    power_of_two,
    target_of,
)
from swav_kernels.triton_kernels.reduce import LN2, aligned, online_sum, sum_partials
from swav_kernels.triton_kernels.scores import score_tile

LONGEST_ROW = 8192  # prototypes of one row in one program's registers
STREAMED_ROW = 2048  # prototypes at a time of a longer row


@triton.jit
def _swapped_kernel(
    scores_ptr, codes_ptr,
    loss_ptr,  # [V, row blocks]
    d_scores_ptr,  # [V, B, K], or None
    num_samples, num_prototypes, scale, d_scale,
    ASSIGN: tl.constexpr, ONE_TILE: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Loss = sum over codes q of other crops: (sum q) lse - q x; d = d_scale ((sum q) p - q)."""
    crop = tl.program_id(1).to(tl.int64)
    num_prototypes = aligned(num_prototypes, ALIGN)
    row = tl.program_id(0) * BLOCK_N
    rows = row + tl.arange(0, BLOCK_N)
    # a loop of one known step disappears, and its loads serve both passes
    stop = BLOCK_K if ONE_TILE else num_prototypes
    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    mass = tl.zeros([BLOCK_N], tl.float32)
    dots = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, stop, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        logits = scale * score_tile(
            scores_ptr, None, crop, row, start, num_samples, num_prototypes,
            0, "ieee", BLOCK_N, BLOCK_K, 16,
        )  # fmt: skip
        codes = _codes_of_others(
            codes_ptr, crop, rows, k, num_samples, num_prototypes, ASSIGN, BLOCK_N, BLOCK_K
        )
        maximum, total, _, _ = online_sum(maximum, total, logits, 1)
        mass += tl.sum(codes, 1)
        # a code of 0 on a masked score is 0, not 0 * inf
        dots += tl.sum(tl.where(codes == 0, 0.0, codes * logits), 1)
    log_sum = maximum + tl.log2(total)
    # a crop that predicts no codes does not count, whatever its scores are
    num_targets = tl.full([], len(ASSIGN), tl.int32)
    for a in tl.static_range(len(ASSIGN)):
        num_targets -= tl.where(crop == ASSIGN[a], 1, 0)
    losses = tl.where(num_targets == 0, 0.0, mass * log_sum - dots)
    loss = tl.sum(tl.where(rows < num_samples, losses, 0.0), 0) * LN2
    if d_scores_ptr is not None:
        for start in range(0, stop, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            logits = scale * score_tile(
                scores_ptr, None, crop, row, start, num_samples, num_prototypes,
                0, "ieee", BLOCK_N, BLOCK_K, 16,
            )  # fmt: skip
            codes = _codes_of_others(
                codes_ptr, crop, rows, k, num_samples, num_prototypes, ASSIGN, BLOCK_N, BLOCK_K
            )
            p = tl.exp2(logits - log_sum[:, None])
            inside = (rows < num_samples)[:, None] & (k < num_prototypes)[None, :]
            offsets = (crop * num_samples + rows)[:, None] * num_prototypes + k[None, :]
            d_scores = d_scale * (mass[:, None] * p - codes)
            d_scores = tl.where(num_targets == 0, 0.0, d_scores)
            tl.store(d_scores_ptr + offsets, d_scores, mask=inside)
    tl.store(loss_ptr + crop * tl.num_programs(0) + tl.program_id(0), loss)


@triton.jit
def _codes_of_others(
    codes_ptr, crop, rows, k, num_samples, num_prototypes,
    ASSIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum of the codes [BLOCK_N, BLOCK_K] of all assign crops but this one."""
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for a in tl.static_range(len(ASSIGN)):
        num_rows = tl.where(crop != ASSIGN[a], num_samples, 0)
        inside = (rows < num_rows)[:, None] & (k < num_prototypes)[None, :]
        offsets = (rows.to(tl.int64) + a * num_samples)[:, None] * num_prototypes + k[None, :]
        codes = tl.load(codes_ptr + offsets, mask=inside, other=0.0)
        total += codes.to(tl.float32)
    return total


def tiles(num_prototypes: int, target: str) -> Tiles:
    """Blocks of whole rows, at most LONGEST_ROW long; longer rows are streamed."""
    if target == "interpreter":
        return Tiles(64, power_of_two(num_prototypes, 16, 4096))
    if num_prototypes > LONGEST_ROW:
        return Tiles(2, STREAMED_ROW, num_warps=8).on(target)
    block_k = power_of_two(num_prototypes, 128, LONGEST_ROW)
    return Tiles(power_of_two(8192 // block_k, 1, 32), block_k, num_warps=8).on(target)


@on_its_device
def loss_and_gradient(
    scores: Tensor,
    codes: Tensor,
    assign: tuple[int, ...],
    temperature: float,
    need_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss [] and its gradient [V, B, K], float32."""
    num_crops, num_samples, num_prototypes = scores.shape
    d_scores = None
    if need_gradient:
        d_scores = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    if num_samples == 0:
        return torch.zeros((), dtype=torch.float32, device=scores.device), d_scores
    block = tiles(num_prototypes, target_of(scores.device))
    num_blocks = triton.cdiv(num_samples, block.block_n)
    losses = torch.empty(num_crops * num_blocks, dtype=torch.float32, device=scores.device)
    weight = 1 / (len(assign) * (num_crops - 1) * num_samples)
    _swapped_kernel[(num_blocks, num_crops)](
        scores_ptr=scores,
        codes_ptr=codes,
        loss_ptr=losses,
        d_scores_ptr=d_scores,
        num_samples=num_samples,
        num_prototypes=num_prototypes,
        scale=log2_scale(temperature),
        d_scale=weight / temperature,
        ASSIGN=assign,
        ONE_TILE=num_prototypes <= block.block_k,
        ALIGN=alignment(num_prototypes),
        BLOCK_N=block.block_n,
        BLOCK_K=block.block_k,
        **block.options,
    )
    return sum_partials(losses, weight), d_scores
