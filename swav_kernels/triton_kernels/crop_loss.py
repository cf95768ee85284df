"""From what `row_sums` knows of predictions p and codes q to the loss and d_features.

With barycentres m_i = q_i c of the assign crops i, n_v = |A without v| and w = `mean_weight`:
loss = w sum_v sum_b (n_v lse_v - z_v . sum_{i != v} m_i / temperature),
d_features_v = w / temperature (n_v p_v c - sum_{i != v} m_i).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import Tiles
from swav_kernels.triton_kernels.reduce import LN2, load_block, load_rows, sum_partials
from swav_kernels.triton_kernels.rows import RowSums
from swav_kernels.triton_kernels.splits import combined_index, combined_sum, combined_values


@triton.jit
def _crop_loss_kernel(
    features_ptr, prototypes_ptr,
    p_max_ptr, p_sum_ptr, p_values_ptr, p_splits,
    q_max_ptr, q_sum_ptr, q_values_ptr, q_index_ptr, q_splits,
    weights_ptr,  # [B], or None
    loss_ptr,  # [V, row blocks]
    d_features_ptr,  # [V, B, D], or None
    num_samples, num_prototypes, inv_temperature, d_scale,
    ASSIGN: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One crop's samples: what they lose against the codes of all other assign crops."""
    crop, num_crops = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    crop_rows = tl.cast(num_samples, tl.int64)
    first_row = tl.program_id(0) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_N)
    inside = rows < num_samples
    p_rows, p_stride, q_stride = (
        crop * crop_rows + rows,
        num_crops * crop_rows,
        len(ASSIGN) * crop_rows,
    )
    num_targets = tl.full([], len(ASSIGN), tl.float32)
    for a in tl.static_range(len(ASSIGN)):
        num_targets -= tl.where(crop == ASSIGN[a], 1.0, 0.0)

    p_max, p_sum = combined_sum(p_max_ptr, p_sum_ptr, p_rows, inside, p_stride, p_splits, BLOCK_N)
    losses = num_targets * (p_max + tl.log2(p_sum)) * LN2
    if weights_ptr is not None:
        weights = tl.load(weights_ptr + rows, mask=inside, other=0.0)
    for start in range(0, DIM, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        here = inside[:, None] & (d < DIM)[None, :]
        target = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for a in tl.static_range(len(ASSIGN)):
            is_target = rows < tl.where(crop != ASSIGN[a], num_samples, 0)
            q_rows = a * crop_rows + rows
            q_max, q_sum = combined_sum(
                q_max_ptr, q_sum_ptr, q_rows, is_target, q_stride, q_splits, BLOCK_N
            )
            if q_index_ptr is None:
                barycentre = combined_values(
                    q_values_ptr, q_max_ptr, q_max, q_sum, q_rows, d, is_target, q_stride,
                    q_splits, DIM, BLOCK_N, BLOCK_D,
                )  # fmt: skip
            else:
                index = combined_index(
                    q_max_ptr, q_index_ptr, q_rows, is_target, q_stride, q_splits, BLOCK_N
                )
                barycentre = load_rows(prototypes_ptr, index, num_prototypes, d, DIM)
                barycentre = tl.where((q_sum > 0)[:, None], barycentre, float("nan"))
            target += tl.where(is_target[:, None], barycentre, 0.0)
        z = load_block(
            features_ptr + crop * crop_rows * DIM, first_row, num_samples, d, DIM, BLOCK_N
        )
        if PRECISION == "bfloat16":  # as in the product that made the scores
            z = z.to(tl.bfloat16)
        losses -= inv_temperature * tl.sum(z.to(tl.float32) * target, 1)
        if d_features_ptr is not None:
            prediction = combined_values(
                p_values_ptr, p_max_ptr, p_max, p_sum, p_rows, d, inside, p_stride, p_splits,
                DIM, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            d_features = d_scale * (num_targets * prediction - target)
            if weights_ptr is not None:
                d_features *= weights[:, None]
            tl.store(d_features_ptr + p_rows[:, None] * DIM + d[None, :], d_features, mask=here)
    if weights_ptr is not None:
        losses *= weights
    loss = tl.sum(tl.where(inside, losses, 0.0), 0)
    tl.store(loss_ptr + crop * tl.num_programs(0) + tl.program_id(0), loss)


def mean_weight(assign: tuple[int, ...], num_crops: int, num_samples: int) -> float:
    """Return w = 1 / (pairs of crops * B): a crop predicts all codes but those of its number."""
    num_pairs = len(assign) * num_crops - sum(crop in range(num_crops) for crop in assign)
    return 1 / (num_pairs * num_samples)


def crop_loss(
    features: Tensor,
    prototypes: Tensor,
    p: RowSums,
    q: RowSums,
    assign: tuple[int, ...],
    temperature: float,
    precision: str,
    need_features: bool,
    tiles: Tiles,
    sample_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss [] and d_features [V, B, D], samples weighted by [B]; B > 0."""
    num_crops, num_samples, dim = features.shape
    num_blocks = triton.cdiv(num_samples, tiles.block_n)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=features.device)

    losses = new(num_crops * num_blocks)
    d_features = new(num_crops, num_samples, dim) if need_features else None
    weight = mean_weight(assign, num_crops, num_samples)
    _crop_loss_kernel[(num_blocks, num_crops)](
        features_ptr=features,
        prototypes_ptr=prototypes,
        p_max_ptr=p.maximum,
        p_sum_ptr=p.total,
        p_values_ptr=p.values,
        p_splits=p.num_splits,
        q_max_ptr=q.maximum,
        q_sum_ptr=q.total,
        q_values_ptr=q.values,
        q_index_ptr=q.index,
        q_splits=q.num_splits,
        weights_ptr=sample_weights,
        loss_ptr=losses,
        d_features_ptr=d_features,
        num_samples=num_samples,
        num_prototypes=prototypes.shape[0],
        inv_temperature=1 / temperature,
        d_scale=weight / temperature,
        ASSIGN=assign,
        DIM=dim,
        PRECISION=precision,
        BLOCK_N=tiles.block_n,
        BLOCK_D=tiles.block_d,
        **tiles.options,
    )
    return sum_partials(losses, weight), d_features
