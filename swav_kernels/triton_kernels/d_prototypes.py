"""The gradient of the swapped loss for the prototypes, p and q formed again tile by tile.

d_prototypes = w / temperature sum_v (n_v p_v - sum_{i != v} q_i)^T z_v: programs own prototypes and
stream over the samples, so there is nothing to add atomically. Codes are of the assign crops, or of
a teacher's crops in their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.crop_loss import mean_weight
from swav_kernels.triton_kernels.launch import Tiles, dot_precision, log2_scale, split
from swav_kernels.triton_kernels.reduce import LOG2E, dot_rows, load_block, product, sum_partials
from swav_kernels.triton_kernels.rows import RowSums
from swav_kernels.triton_kernels.splits import combined_index, combined_log


@triton.jit
def _d_prototypes_kernel(
    features_ptr, prototypes_ptr, teacher_ptr, teacher_prototypes_ptr, f_ptr, weights_ptr,
    p_max_ptr, p_sum_ptr, p_splits,
    q_max_ptr, q_sum_ptr, q_index_ptr, q_splits,
    out_ptr,  # [S, K, D]
    num_crops, num_samples, num_prototypes, samples_per_program, p_scale, q_scale,
    ASSIGN: tl.constexpr, DIM: tl.constexpr, TEACHER_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    STEP_D: tl.constexpr,
):  # fmt: skip
    """One block of prototypes, one split of the samples, one tile of the dimensions."""
    part = tl.program_id(1)
    crop_rows = tl.cast(num_samples, tl.int64)
    first_k = tl.program_id(0) * BLOCK_K
    k = first_k + tl.arange(0, BLOCK_K)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    first = part * samples_per_program
    for start in range(first, min(first + samples_per_program, num_samples), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        all_codes = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
        for place in range(len(ASSIGN)):
            dots = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
            if teacher_ptr is not None:
                dots = dot_rows(
                    teacher_prototypes_ptr, first_k, num_prototypes,
                    teacher_ptr + place * crop_rows * TEACHER_DIM, start, num_samples,
                    TEACHER_DIM, PRECISION, BLOCK_K, BLOCK_N, STEP_D,
                )  # fmt: skip
            elif q_index_ptr is None:
                dots = dot_rows(
                    prototypes_ptr, first_k, num_prototypes,
                    features_ptr + _crop_at(place, ASSIGN) * crop_rows * DIM, start, num_samples,
                    DIM, PRECISION, BLOCK_K, BLOCK_N, STEP_D,
                )  # fmt: skip
            all_codes += _code_tile(
                dots, place, rows, k, f_ptr, q_max_ptr, q_sum_ptr, q_index_ptr, q_splits,
                num_samples, num_prototypes, q_scale, len(ASSIGN), BLOCK_N,
            )  # fmt: skip
        for crop in range(num_crops):
            crop_ptr = features_ptr + crop * crop_rows * DIM
            dots = dot_rows(
                prototypes_ptr, first_k, num_prototypes, crop_ptr, start, num_samples,
                DIM, PRECISION, BLOCK_K, BLOCK_N, STEP_D,
            )  # fmt: skip
            # a crop does not predict its own codes
            place = place_of(crop, ASSIGN)
            codes, num_targets = all_codes, len(ASSIGN) * 1.0
            if place >= 0:
                own_dots = dots
                if teacher_ptr is not None:
                    own_dots = dot_rows(
                        teacher_prototypes_ptr, first_k, num_prototypes,
                        teacher_ptr + place * crop_rows * TEACHER_DIM, start, num_samples,
                        TEACHER_DIM, PRECISION, BLOCK_K, BLOCK_N, STEP_D,
                    )  # fmt: skip
                codes = all_codes - _code_tile(
                    own_dots, place, rows, k, f_ptr, q_max_ptr, q_sum_ptr, q_index_ptr, q_splits,
                    num_samples, num_prototypes, q_scale, len(ASSIGN), BLOCK_N,
                )  # fmt: skip
                num_targets = len(ASSIGN) - 1.0
            log_sum = combined_log(
                p_max_ptr, p_sum_ptr, crop * crop_rows + rows, rows < num_samples,
                num_crops * crop_rows, p_splits, BLOCK_N,
            )  # fmt: skip
            d_scores = num_targets * tl.exp2(p_scale * dots - log_sum[None, :]) - codes
            if weights_ptr is not None:
                d_scores *= tl.load(weights_ptr + rows, rows < num_samples, other=0.0)[None, :]
            z = load_block(crop_ptr, start, num_samples, d, DIM, BLOCK_N)
            total = product(d_scores, z, total, PRECISION)
    out = (part * tl.cast(num_prototypes, tl.int64) + k)[:, None] * DIM + d[None, :]
    tl.store(out_ptr + out, total, mask=(k < num_prototypes)[:, None] & (d < DIM)[None, :])


@triton.jit
def _crop_at(place, ASSIGN: tl.constexpr):
    """ASSIGN[place]."""
    crop = place * 0
    for a in tl.static_range(len(ASSIGN)):
        crop = tl.where(place == a, ASSIGN[a], crop)
    return crop


@triton.jit
def place_of(crop, ASSIGN: tl.constexpr):
    """The place of a crop in ASSIGN, or -1."""
    place = crop * 0 - 1
    for a in tl.static_range(len(ASSIGN)):
        place = tl.where(crop == ASSIGN[a], a, place)
    return place


@triton.jit
def _code_tile(
    dots, place, rows, k,
    f_ptr, q_max_ptr, q_sum_ptr, q_index_ptr, q_splits,
    num_samples, num_prototypes, scale,
    NUM_CODED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Codes [BLOCK_K, BLOCK_N] of one assign crop from its scores; with indices, one-hot."""
    crop_rows = tl.cast(num_samples, tl.int64)
    inside, stride = rows < num_samples, NUM_CODED * crop_rows
    first_row, first_f = place * crop_rows, place * tl.cast(num_prototypes, tl.int64)
    log_sum = combined_log(
        q_max_ptr, q_sum_ptr, first_row + rows, inside, stride, q_splits, BLOCK_N
    )
    if q_index_ptr is None:
        f = tl.load(f_ptr + first_f + k, k < num_prototypes, other=0.0) * LOG2E
        codes = tl.exp2(scale * dots + f[:, None] - log_sum[None, :])
    else:
        index = combined_index(
            q_max_ptr, q_index_ptr, first_row + rows, inside, stride, q_splits, BLOCK_N
        )
        # 0 * log_sum: NaN where soft codes are
        codes = tl.where(k[:, None] == index[None, :], 1.0, 0.0) + 0 * log_sum[None, :]
        codes = tl.where(inside[None, :], codes, 0.0)
    return codes


def d_prototypes(
    features: Tensor,
    prototypes: Tensor,
    f: Tensor,
    p: RowSums,
    q: RowSums,
    assign: tuple[int, ...],
    temperature: float,
    epsilon: float,
    precision: str,
    tiles: Tiles,
    teacher: tuple[Tensor, Tensor] | None = None,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """Return d_prototypes [K, D] from the row sums of predictions p and codes q; B > 0.

    `teacher` is features [A, B, E] and prototypes [K, E]; samples are weighted by [B].
    """
    teacher_features, teacher_prototypes = teacher or (None, None)
    num_crops, num_samples, dim = features.shape
    num_prototypes = prototypes.shape[0]
    num_k_tiles = triton.cdiv(num_prototypes, tiles.block_k)
    num_dim_tiles = triton.cdiv(dim, tiles.block_d)
    num_splits, blocks_each = split(
        triton.cdiv(num_samples, tiles.block_n), num_k_tiles * num_dim_tiles, tiles.fill
    )
    out = torch.empty(num_splits, num_prototypes, dim, dtype=torch.float32, device=features.device)
    _d_prototypes_kernel[(num_k_tiles, num_splits, num_dim_tiles)](
        features_ptr=features,
        prototypes_ptr=prototypes,
        teacher_ptr=teacher_features,
        teacher_prototypes_ptr=teacher_prototypes,
        f_ptr=f,
        weights_ptr=sample_weights,
        p_max_ptr=p.maximum,
        p_sum_ptr=p.total,
        p_splits=p.num_splits,
        q_max_ptr=q.maximum,
        q_sum_ptr=q.total,
        q_index_ptr=q.index,
        q_splits=q.num_splits,
        out_ptr=out,
        num_crops=num_crops,
        num_samples=num_samples,
        num_prototypes=num_prototypes,
        samples_per_program=blocks_each * tiles.block_n,
        p_scale=log2_scale(temperature),
        q_scale=log2_scale(epsilon),
        ASSIGN=assign,
        DIM=dim,
        TEACHER_DIM=0 if teacher_prototypes is None else teacher_prototypes.shape[1],
        PRECISION=dot_precision(precision),
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        BLOCK_D=tiles.block_d,
        STEP_D=tiles.step_d,
        **tiles.options,
    )
    weight = mean_weight(assign, num_crops, num_samples)
    return sum_partials(out, weight / temperature)
