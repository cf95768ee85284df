"""Public op `prototype_scores`: how near every feature is to every prototype."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.ops import route
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
    if not route.is_traced():
        return scores_of(features, prototypes, normalize, backend)
    dtype = torch.promote_types(features.dtype, prototypes.dtype)
    if normalize and features.is_floating_point():  # if not, the op says what is wrong
        features = checks.normalize_rows(features)
    scores: Tensor = torch.ops.swav_kernels.prototype_scores(features, prototypes, backend)
    return scores.to(dtype)


def scores_of(features: Tensor, prototypes: Tensor, normalize: bool, backend: str | None) -> Tensor:
    """The scores by a backend's kernels, with autograd."""
    checks.check_flags(OP, normalize=normalize)
    dtype, name = check(features, prototypes, backend)
    checks.check_readable(OP, name, features=features, prototypes=prototypes)
    dim = prototypes.shape[1]
    if normalize:
        features = checks.normalize_rows(features)
    flat = features if features.dim() == 2 else features.reshape(-1, dim)
    rows, columns = checks.promote(flat.contiguous(), prototypes.contiguous())
    if name == "reference":
        acc = checks.accumulate_dtype(rows)
        scores = reference.prototype_scores(rows.to(acc), columns.to(acc))
    else:
        scores = _run(rows, columns, dispatch.kernels(OP, name))
    if scores.dtype != dtype:
        scores = scores.to(dtype)
    return scores if features.dim() == 2 else scores.view(*features.shape[:-1], len(prototypes))


def gradients_of(
    d_scores: Tensor,
    features: Tensor,
    prototypes: Tensor,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients [N, D] and [K, D] of scores, each None unless needed, in float32 (float64)."""
    _, name = check(features, prototypes, backend)
    checks.check_readable(OP, name, features=features, prototypes=prototypes, gradient=d_scores)
    rows, columns = checks.promote(features.reshape(-1, prototypes.shape[1]), prototypes)
    flat = d_scores.reshape(-1, len(prototypes))
    if name != "reference":
        kernels: Any = dispatch.kernels(OP, name)
        found: tuple[Tensor | None, Tensor | None] = kernels.gradients(
            flat.contiguous(), rows.contiguous(), columns.contiguous(), need_features,
            need_prototypes,
        )  # fmt: skip
        return found
    acc = checks.accumulate_dtype(rows)
    flat, rows, columns = flat.to(acc), rows.to(acc), columns.to(acc)
    return (
        flat @ columns if need_features else None,
        flat.T @ rows if need_prototypes else None,
    )


def check(features: Tensor, prototypes: Tensor, backend: str | None) -> tuple[torch.dtype, str]:
    """Return the dtype of the scores and the backend that makes them."""
    checks.check_tensor(OP, "features", features, "[..., D]")
    checks.check_tensor(OP, "prototypes", prototypes, "[K, D]")
    dim = prototypes.shape[1]
    checks.check_shape(OP, "features", features, (*features.shape[:-1], dim), "[..., D]")
    checks.check_not_empty(OP, "prototypes", dim, "D")
    checks.check_same_device(OP, features=features, prototypes=prototypes)
    dtype = torch.promote_types(features.dtype, prototypes.dtype)
    name = dispatch.choose_backend(
        OP, features.device, dtype, backend, features=features, prototypes=prototypes
    )
    return dtype, name


def _run(features: Tensor, prototypes: Tensor, kernels: ModuleType) -> Tensor:
    if torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad):
        scores: Tensor = _PrototypeScores.apply(features, prototypes, kernels)  # type: ignore[no-untyped-call]
    else:
        scores = kernels.scores(features.detach(), prototypes.detach())
    return scores


def _product(rows: Tensor, columns: Tensor, kernels: ModuleType) -> Tensor:
    """Rows @ columns.T, in the dtype of the columns."""
    a, b = checks.promote(rows.contiguous(), columns.contiguous())
    return _run(a, b, kernels).to(columns.dtype)


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
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
        checks.check_readable(OP, "cpu", gradient=d_scores)
        features, prototypes = ctx.saved_tensors
        need_features, need_prototypes, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradients are scores too, with gradients of their own
            d_features = _product(d_scores, prototypes.t(), ctx.kernels) if need_features else None
            d_prototypes = (
                _product(d_scores.t(), features.t(), ctx.kernels) if need_prototypes else None
            )
            return d_features, d_prototypes, None
        d_features, d_prototypes = ctx.kernels.gradients(
            d_scores.contiguous(), features, prototypes, need_features, need_prototypes
        )
        return (
            d_features.to(prototypes.dtype) if need_features else None,
            d_prototypes.to(features.dtype) if need_prototypes else None,
            None,
        )
