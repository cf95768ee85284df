"""The whole SwAV loss from features and prototypes: scores, codes, swapped cross-entropy."""

import torch
from torch import Tensor

from swav_kernels.reference import sinkhorn
from swav_kernels.reference.prototype_scores import prototype_scores
from swav_kernels.reference.swapped_cross_entropy import swapped_cross_entropy
from swav_kernels.stats import CodeStatistics


def scores(features: Tensor, prototypes: Tensor, precision: str) -> Tensor:
    """[..., D], [K, D] -> [..., K]; precision="bfloat16" rounds the operands, not the sums."""
    if precision == "bfloat16":
        features, prototypes = _rounded(features), _rounded(prototypes)
    return prototype_scores(features, prototypes)


def _rounded(x: Tensor) -> Tensor:
    """Nearest bfloat16 numbers; the gradient passes as it is, for only operands are rounded."""
    with torch.no_grad():
        step = x.bfloat16().to(x.dtype) - x  # exact, and so is the sum
    return x + step


def swav_loss(
    features: Tensor, prototypes: Tensor, potentials: Tensor, assign: tuple[int, ...],
    temperature: float, epsilon: float, hard: bool, precision: str,
) -> tuple[Tensor, CodeStatistics]:  # fmt: skip
    """[V, B, D], [K, D], [A, K] -> the loss, differentiable, and the statistics of its codes."""
    s = scores(features, prototypes, precision)
    assign_scores = torch.stack([s.detach()[crop] for crop in assign])
    codes = sinkhorn.codes(assign_scores, potentials, epsilon, hard)
    loss = swapped_cross_entropy(s, codes, assign, temperature)
    statistics = CodeStatistics(
        nearest=assign_scores.argmax(-1),
        code_entropy=torch.special.entr(codes).sum(-1),
        max_code=codes.amax(-1),
        code_sums=codes.sum(1),
    )
    return loss, statistics
