"""Prototype scores and their gradients: three products of matrices, one kernel.

scores [N, K] = features [N, D] prototypes^T, d_features [N, D] = d_scores prototypes,
d_prototypes [K, D] = d_scores^T features. Half operands are multiplied as they are and summed in
float32; sums over many samples are split among programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import (
    Tiles,
    dot_precision,
    on_its_device,
    power_of_two,
    split,
    target_of,
)
from swav_kernels.triton_kernels.reduce import product, sum_partials


@triton.jit
def _product_kernel(
    a_ptr, b_ptr,
    out_ptr,  # [S, M, N], row-major
    row_bounds_ptr, column_bounds_ptr,  # [M], [N]: what the result is divided by, or None
    num_rows, num_columns, depth, depth_per_split,
    a_row_stride, a_depth_stride, b_depth_stride, b_column_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of a [M, depth] @ b [depth, N], over one split of the depth."""
    part = tl.program_id(2)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_rows = a_ptr + rows[:, None] * a_row_stride
    b_columns = b_ptr + columns[None, :] * b_column_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = part * depth_per_split
    for start in range(first, min(first + depth_per_split, depth), BLOCK_DEPTH):
        inner = (start + tl.arange(0, BLOCK_DEPTH)).to(tl.int64)
        a_inside = (rows < num_rows)[:, None] & (inner < depth)[None, :]
        b_inside = (inner < depth)[:, None] & (columns < num_columns)[None, :]
        a = tl.load(a_rows + inner[None, :] * a_depth_stride, mask=a_inside, other=0.0)
        b = tl.load(b_columns + inner[:, None] * b_depth_stride, mask=b_inside, other=0.0)
        total = product(a, b, total, PRECISION)
    if row_bounds_ptr is not None:
        row_bounds = tl.load(row_bounds_ptr + rows, rows < num_rows, other=1.0)
        column_bounds = tl.load(column_bounds_ptr + columns, columns < num_columns, other=1.0)
        total = total / row_bounds[:, None] / column_bounds[None, :]
    out = (part * num_rows + rows)[:, None] * num_columns + columns[None, :]
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(out_ptr + out, total.to(out_ptr.dtype.element_ty), mask=inside)


def tiles(num_rows: int, num_columns: int, dtype: torch.dtype, target: str) -> Tiles:
    """Blocks of a product [M, N]; block_d is the step along its depth."""
    if target == "interpreter":
        return Tiles(
            power_of_two(num_rows, 16, 1024), power_of_two(num_columns, 16, 1024), 512, fill=1
        )
    if dtype == torch.float32:  # no tensor cores: registers bound the tile
        return Tiles(64, 64, 16).on(target)
    return Tiles(64, 128, 64, num_stages=3).on(target)


@on_its_device
def scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return features [N, D] @ prototypes [K, D].T, in their dtype."""
    return _multiply(features, prototypes.t(), features.dtype)


def bounded_scores(
    features: Tensor, prototypes: Tensor, feature_bounds: Tensor, prototype_bounds: Tensor
) -> Tensor:
    """Return the scores [N, K] over bounds [N] and [K] of their rows' lengths, in float16."""
    return _multiply(features, prototypes.t(), torch.float16, (feature_bounds, prototype_bounds))


@on_its_device
def gradients(
    d_scores: Tensor,
    features: Tensor,
    prototypes: Tensor,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return float32 (d_features [N, D], d_prototypes [K, D]) of d_scores [N, K]."""
    return (
        _multiply(d_scores, prototypes, torch.float32) if need_features else None,
        _multiply(d_scores.t(), features, torch.float32) if need_prototypes else None,
    )


def _multiply(
    a: Tensor,
    b: Tensor,
    dtype: torch.dtype,
    bounds: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
) -> Tensor:
    num_rows, depth = a.shape
    num_columns = b.shape[1]
    if num_rows == 0 or num_columns == 0 or depth == 0:
        return torch.zeros(num_rows, num_columns, dtype=dtype, device=a.device)
    block = tiles(num_rows, num_columns, a.dtype, target_of(a.device))
    grid = triton.cdiv(num_rows, block.block_n), triton.cdiv(num_columns, block.block_k)
    num_splits, blocks_each = 1, triton.cdiv(depth, block.block_d)
    if dtype == torch.float32:  # partial sums are float32, and so must the result be
        num_splits, blocks_each = split(blocks_each, grid[0] * grid[1], block.fill)
    out = torch.empty(num_splits, num_rows, num_columns, dtype=dtype, device=a.device)
    _product_kernel[(*grid, num_splits)](
        a_ptr=a,
        b_ptr=b,
        out_ptr=out,
        row_bounds_ptr=bounds[0],
        column_bounds_ptr=bounds[1],
        num_rows=num_rows,
        num_columns=num_columns,
        depth=depth,
        depth_per_split=blocks_each * block.block_d,
        a_row_stride=a.stride(0),
        a_depth_stride=a.stride(1),
        b_depth_stride=b.stride(0),
        b_column_stride=b.stride(1),
        PRECISION=dot_precision("float32"),
        BLOCK_M=block.block_n,
        BLOCK_N=block.block_k,
        BLOCK_DEPTH=block.block_d,
        **block.options,
    )
    return out[0] if num_splits == 1 else sum_partials(out)
