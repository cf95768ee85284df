"""Public op `prototype_scores`: how near every feature is to every prototype."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swav_kernels import checks, dispatch
from swav_kernels.reference import prototype_scores as reference

OP = "prototype_scores"


@checks.without_autocast
def prototype_scores(
    features: Tensor, prototypes: Tensor, *, normalize: bool = False, backend: str | None = None
) -> Tensor:
    """Score features against prototypes: `scores = features @ prototypes.T`.

    With L2-normalised features and prototypes a score is a cosine. Sums run in float32 (float64
    for float64 inputs); the result has the promoted dtype of the inputs.

    Args:
        features: [..., D], any leading dimensions; rows are samples.
        prototypes: [K, D].
        normalize: L2-normalise the features first, `z / max(|z|, 1e-12)`, with the gradient through
            it; a zero row gets scores 0 and a zero gradient. The prototypes are taken as they are.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        scores [..., K].

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes or devices do not fit, or the backend cannot run here.

    Example:
        >>> prototype_scores(torch.eye(2), torch.eye(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Caron et al. 2020 (arXiv 2006.09882), section 3.1: z^T c in equation 2.
    """
    checks.check_tensor(OP, "features", features, "[..., D]")
    checks.check_tensor(OP, "prototypes", prototypes, "[K, D]")
    num_prototypes, dim = prototypes.shape
    checks.check_shape(OP, "features", features, (*features.shape[:-1], dim), "[..., D]")
    checks.check_not_empty(OP, "prototypes", dim, "D")
    checks.check_same_device(OP, features=features, prototypes=prototypes)
    checks.check_flags(OP, normalize=normalize)
    dtype = torch.promote_types(features.dtype, prototypes.dtype)
    name = dispatch.choose_backend(OP, features.device, dtype, backend)
    checks.check_readable(OP, name, features=features, prototypes=prototypes)
    if normalize:
        features = checks.normalize_rows(features)
    flat = features if features.dim() == 2 else features.reshape(-1, dim)
    rows, prototypes = checks.promote(flat.contiguous(), prototypes.contiguous())
    if name == "reference":
        acc = checks.accumulate_dtype(rows)
        scores = reference.prototype_scores(rows.to(acc), prototypes.to(acc))
    else:
        scores = _run(rows, prototypes, dispatch.kernels(OP, name))
    if scores.dtype != dtype:
        scores = scores.to(dtype)
    return scores if features.dim() == 2 else scores.view(*features.shape[:-1], num_prototypes)


def _run(features: Tensor, prototypes: Tensor, kernels: ModuleType) -> Tensor:
    if torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad):
        scores: Tensor = _PrototypeScores.apply(features, prototypes, kernels)  # type: ignore[no-untyped-call]
    else:
        scores = kernels.scores(features.detach(), prototypes.detach())
    return scores


class _PrototypeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, kernels: ModuleType) -> Tensor:
        need_features, need_prototypes, _ = ctx.needs_input_grad
        # each gradient needs only the other operand
        ctx.save_for_backward(
            features if need_prototypes else features.new_empty(0),
            prototypes if need_features else prototypes.new_empty(0),
        )
        ctx.kernels = kernels
        ctx.shapes = features.shape, prototypes.shape
        scores: Tensor = kernels.scores(features, prototypes)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        checks.check_readable(OP, "cpu", gradient=d_scores)
        features, prototypes = ctx.saved_tensors
        need_features, need_prototypes, _ = ctx.needs_input_grad
        d_features, d_prototypes = ctx.kernels.gradients(
            d_scores.contiguous(), features, prototypes, need_features, need_prototypes
        )
        return (
            d_features.to(prototypes.dtype) if need_features else None,
            d_prototypes.to(features.dtype) if need_prototypes else None,
            None,
        )
