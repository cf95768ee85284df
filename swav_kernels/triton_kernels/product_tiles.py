"""Block sizes of the kernels that multiply features and prototypes.

They aim at registers and shared memory of sm_80, sm_90, sm_100 and gfx942, as
tests/test_triton_compile.py measures them; which is fastest is for a GPU to say.
"""

from dataclasses import dataclass

import torch

from swav_kernels.triton_kernels.launch import Tiles, power_of_two

WIDEST = 128  # dimensions of one result tile; more of them are more tiles


@dataclass(frozen=True)
class ProductTiles:
    """Blocks of each kernel of the streamed loss."""

    columns: Tiles  # sums over samples
    rows: Tiles  # sums over prototypes
    crops: Tiles  # loss and d_features from the row sums: no products
    d_prototypes: Tiles

    def on(self, target: str) -> "ProductTiles":
        """Return these for a target."""
        return ProductTiles(
            columns=self.columns.on(target),
            rows=self.rows.on(target),
            crops=self.crops.on(target),
            d_prototypes=self.d_prototypes.on(target),
        )


def tiles(
    num_rows: int,
    num_prototypes: int,
    dim: int,
    dtype: torch.dtype,
    precision: str,
    target: str,
) -> ProductTiles:
    """Choose blocks for features [.., N, D] and prototypes [K, D] of a dtype."""
    width = power_of_two(dim, 16, WIDEST)
    if target == "interpreter":
        large = Tiles(
            power_of_two(num_rows, 16, 128),
            power_of_two(num_prototypes, 16, 1024),
            power_of_two(dim, 16, 512),
            power_of_two(dim, 16, 512),
            fill=1,
        )
        return ProductTiles(large, large, large, large)
    if dtype == torch.float32 and precision == "float32":
        return _without_tensor_cores(dim, width).on(target)
    if target.startswith("gfx"):
        return _on_amd(dim, width, dtype)
    return _on_tensor_cores(dim, width, dtype).on(target)


def _without_tensor_cores(dim: int, width: int) -> ProductTiles:
    # both operands of such a product sit in registers, so the summed side must be short
    return ProductTiles(
        columns=Tiles(64, 64, width, 16, num_stages=1),
        rows=Tiles(64 if dim <= WIDEST else 16, 32 if dim <= WIDEST else 64, width, 16, 8),
        crops=Tiles(16, 16, min(width, 64)),
        d_prototypes=Tiles(16, 64, width, 16, num_warps=8, num_stages=1),
    )


def _on_tensor_cores(dim: int, width: int, dtype: torch.dtype) -> ProductTiles:
    crops = Tiles(16, 16, min(width, 64))
    if dim > WIDEST:
        return ProductTiles(
            columns=Tiles(64, 64, width, 64, num_stages=1),
            rows=Tiles(64, 32, width, 64, num_stages=1),
            crops=crops,
            d_prototypes=Tiles(32, 64, width, width, num_warps=8, num_stages=1),
        )
    stages = 1 if dtype == torch.float32 else 2
    return ProductTiles(
        columns=Tiles(64, 64, width, width),
        rows=Tiles(64, 32, width, width),
        crops=crops,
        d_prototypes=Tiles(32, 64, width, width, num_warps=8, num_stages=stages),
    )


def _on_amd(dim: int, width: int, dtype: torch.dtype) -> ProductTiles:
    step = min(width, 64) if dim > WIDEST or dtype == torch.float32 else width
    return ProductTiles(
        columns=Tiles(64, 64, width, step, num_stages=1),
        rows=Tiles(64, 32, width, step, num_stages=1),
        crops=Tiles(16, 16, min(width, 64)),
        d_prototypes=Tiles(32, 64, width, step, num_stages=1),
    )
