"""`torch.ops.swav_kernels.prototype_scores`, and its gradients as an op of their own."""

from typing import Any

import torch
from torch import Tensor

from swav_kernels.library.define import define, filled, refuse_second_derivative
from swav_kernels.ops import prototype_scores as op

GRADIENTS = "prototype_scores_gradients"


def _scores(features: Tensor, prototypes: Tensor, backend: str | None) -> Tensor:
    return op.scores_of(features.detach(), prototypes.detach(), False, backend)


def _scores_shape(features: Tensor, prototypes: Tensor, backend: str | None) -> Tensor:
    dtype, _ = op.check(features, prototypes, backend)
    return features.new_empty((*features.shape[:-1], prototypes.shape[0]), dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, prototypes, ctx.backend = inputs
    ctx.save_for_backward(features, prototypes)


def _backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_derivative(op.OP)
    needed = ctx.needs_input_grad[:2]
    gradients = torch.ops.swav_kernels.prototype_scores_gradients(
        d_scores, *ctx.saved_tensors, *needed, ctx.backend
    )
    return *(x if is_needed else None for x, is_needed in zip(gradients, needed)), None


def _gradients(
    d_scores: Tensor,
    features: Tensor,
    prototypes: Tensor,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    inputs = features, prototypes
    needed = need_features, need_prototypes
    found = op.gradients_of(d_scores, features, prototypes, *needed, backend)
    shaped = (
        None if gradient is None else gradient.view(x.shape).to(x.dtype)
        for gradient, x in zip(found, inputs)
    )
    d_features, d_prototypes = (filled(x, features) for x in shaped)
    return d_features, d_prototypes


def _gradients_shape(
    d_scores: Tensor,
    features: Tensor,
    prototypes: Tensor,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return (
        features.new_empty(features.shape if need_features else ()),
        prototypes.new_empty(prototypes.shape) if need_prototypes else features.new_empty(()),
    )


define(
    f"{op.OP}(Tensor features, Tensor prototypes, str? backend) -> Tensor",
    _scores,
    _scores_shape,
    setup=_keep,
    backward=_backward,
)
define(
    f"{GRADIENTS}(Tensor d_scores, Tensor features, Tensor prototypes, bool need_features, "
    "bool need_prototypes, str? backend) -> (Tensor, Tensor)",
    _gradients,
    _gradients_shape,
)
