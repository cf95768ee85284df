"""Scores and their gradients by the compiled module."""

import torch
from torch import Tensor

from swav_kernels.checks import accumulate_dtype
from swav_kernels.native import address, cpu_kernels


def scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """[N, D], [K, D] -> [N, K] in float32 (float64)."""
    acc = accumulate_dtype(features)
    if features.dtype != acc:
        features, prototypes = features.to(acc), prototypes.to(acc)
    num_samples, dim = features.shape
    num_prototypes = prototypes.shape[0]
    out = torch.empty(num_samples, num_prototypes, dtype=acc, device="cpu")
    cpu_kernels(acc).prototype_scores(
        address(features), address(prototypes), address(out), num_samples, num_prototypes, dim,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def gradients(
    d_scores: Tensor,
    features: Tensor,
    prototypes: Tensor,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """[N, K], [N, D], [K, D] -> d_features, d_prototypes, each None unless needed."""
    acc = accumulate_dtype(d_scores)
    d_scores, features, prototypes = (x.to(acc) for x in (d_scores, features, prototypes))
    num_samples, num_prototypes = d_scores.shape
    dim = (features if need_prototypes else prototypes).shape[-1]
    d_features = torch.empty(num_samples, dim, dtype=acc, device="cpu") if need_features else None
    d_prototypes = (
        torch.empty(num_prototypes, dim, dtype=acc, device="cpu") if need_prototypes else None
    )
    cpu_kernels(acc).prototype_scores_gradients(
        address(d_scores), address(features), address(prototypes), address(d_features),
        address(d_prototypes), num_samples, num_prototypes, dim, torch.get_num_threads(),
    )  # fmt: skip
    return d_features, d_prototypes
