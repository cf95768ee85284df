"""Where a kernel's scores come from: memory, or products of features and prototypes."""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from swav_kernels.triton_kernels.launch import Tiles, alignment, dot_precision
from swav_kernels.triton_kernels.reduce import dot_rows


@dataclass(frozen=True)
class Scores:
    """Scores [A, N, K]: stored, or z c^T of features [A, N, D] and prototypes [K, D]."""

    source: Tensor  # scores or features
    prototypes: Tensor | None = None
    precision: str = "float32"

    @property
    def num_problems(self) -> int:
        """A."""
        return self.source.shape[0]

    @property
    def num_rows(self) -> int:
        """N."""
        return self.source.shape[1]

    @property
    def num_prototypes(self) -> int:
        """K."""
        return self.source.shape[2] if self.prototypes is None else self.prototypes.shape[0]

    @property
    def dim(self) -> int:
        """D; 0 if the scores are stored."""
        return 0 if self.prototypes is None else self.source.shape[2]

    def arguments(self, tiles: Tiles) -> dict[str, Any]:
        """Arguments that every kernel over scores takes."""
        return {
            "source_ptr": self.source,
            "prototypes_ptr": self.prototypes,
            "num_rows": self.num_rows,
            "num_prototypes": self.num_prototypes,
            "DIM": self.dim,
            "PRECISION": dot_precision(self.precision),
            "ALIGN": alignment(self.num_prototypes),
            "BLOCK_N": tiles.block_n,
            "BLOCK_K": tiles.block_k,
            "STEP_D": tiles.step_d,
            **tiles.options,
        }


@triton.jit
def score_tile(
    source_ptr, prototypes_ptr, problem, row, prototype, num_rows, num_prototypes,
    DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STEP_D: tl.constexpr,
):  # fmt: skip
    """Float32 scores [BLOCK_N, BLOCK_K] of one problem, from (row, prototype); -inf outside."""
    first_row = tl.cast(problem, tl.int64) * num_rows
    n, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    inside = (n < num_rows - row)[:, None] & (k < num_prototypes - prototype)[None, :]
    if prototypes_ptr is None:
        block_ptr = source_ptr + (first_row + row) * num_prototypes + prototype
        offsets = n[:, None] * num_prototypes + k[None, :]
        scores = tl.load(block_ptr + offsets, mask=inside, other=float("-inf")).to(tl.float32)
    else:
        scores = dot_rows(
            source_ptr + first_row * DIM, row, num_rows, prototypes_ptr, prototype, num_prototypes,
            DIM, PRECISION, BLOCK_N, BLOCK_K, STEP_D,
        )  # fmt: skip
        scores = tl.where(inside, scores, float("-inf"))
    return scores
