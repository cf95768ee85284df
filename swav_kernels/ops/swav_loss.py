"""Public op `swav_loss`: features and prototypes in, the loss out."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, resolve_group, warn_if_ungrouped
from swav_kernels.ops import ready_gradient
from swav_kernels.ops.sinkhorn import DEFAULT_EPSILON, DEFAULT_ITERATIONS
from swav_kernels.ops.swapped_cross_entropy import DEFAULT_ASSIGN, DEFAULT_TEMPERATURE
from swav_kernels.ops.swav_potentials import balance, check_features, check_potentials, check_queue
from swav_kernels.reference import swav_loss as reference
from swav_kernels.stats import CodeStatistics, summarise

OP = "swav_loss"


@checks.without_autocast
def swav_loss(
    features: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    epsilon: float = DEFAULT_EPSILON,
    iterations: int = DEFAULT_ITERATIONS,
    assign: Sequence[int] = DEFAULT_ASSIGN,
    queue: Tensor | None = None,
    potentials: Tensor | None = None,
    group: Group = None,
    hard: bool = False,
    prototype_weights: Tensor | None = None,
    precision: str = "float32",
    normalize: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """SwAV loss of a batch: scores, Sinkhorn codes and the swapped cross-entropy in one op.

    Equals `swapped_cross_entropy(prototype_scores(z, c), codes)` in value and gradient, where
    `codes[a] = sinkhorn(z[assign[a]] @ c.T joined with queue[a] @ c.T)`, batch rows kept; on `cpu`
    and `triton` nothing of size V * B * K is stored, unless precision="bfloat16" allows it.

    Args:
        features: [V, B, D], V >= 2 crops of B samples, L2-normalised (or pass normalize=True).
        prototypes: [K, D], L2-normalised rows.
        temperature: of the prediction's softmax, from 1e-30 to 1e30.
        epsilon: smoothing of the Sinkhorn, from 1e-30 to 1e30.
        iterations: T >= 1.
        assign: the A distinct crops whose codes are computed.
        queue: [A, L, D], features of earlier batches: they join the Sinkhorn, never the loss.
        potentials: [A, K], or [K] for all crops, in place of the Sinkhorn, of the same epsilon (see
            `swav_potentials`). "Without Sinkhorn" is zeros. No queue or
            prototype_weights beside them, and a group only for the stats.
        group: the process group the codes are balanced over; the loss stays this rank's mean.
        hard: one-hot codes.
        prototype_weights: [K], the share of samples each prototype gets; None is equal shares.
        precision: "bfloat16" rounds the operands of the products, sums stay float32. On `triton` it
            also stores scores in 16 bits where that saves products: 16 MiB to 4 GiB of them, soft
            codes, K <= 8192.
        normalize: L2-normalise features and queue first, with the gradient through it.
        return_stats: also return telemetry of the codes, without a host synchronisation.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        The loss, a float32 scalar (float64 for float64 inputs); 0 for an empty batch. With
        return_stats (loss, stats): 0-dim tensors over the batch rows of the assign crops (of all
        ranks of a group). Entropies are divided by ln K. Usage is the histogram of each sample's
        nearest prototype, the argmax of its scores.
        loss_minus_log_k; code_entropy, the mean over rows; mean_code_entropy, of the mean code;
        usage_entropy; prototypes_in_use, nearest to a sample; mean_max_code; marginal_residual,
        max_k |mean q_k / r_k - 1|, where r is 1 / K or prototype_weights over their sum;
        view_agreement, the share of samples whose assign crops have the same nearest prototype
        (mean over pairs of crops; NaN for one crop).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or shapes, devices or the backend do not fit.

    Example:
        >>> z = torch.randn(3, 8, 16, requires_grad=True)
        >>> c = torch.nn.functional.normalize(torch.randn(5, 16), dim=1).requires_grad_()
        >>> swav_loss(z, c, normalize=True).backward()
        >>> z.grad.shape, c.grad.shape
        (torch.Size([3, 8, 16]), torch.Size([5, 16]))

    Source: Caron et al. 2020 (arXiv 2006.09882), sections 3.1 and 3.2.
    """
    check_features(OP, features, prototypes, "[V, B, D]")
    temperature = checks.check_scale(OP, "temperature", temperature)
    epsilon = checks.check_scale(OP, "epsilon", epsilon)
    iterations = checks.check_iterations(OP, iterations, 1)
    checks.check_precision(OP, precision)
    checks.check_flags(OP, hard=hard, normalize=normalize, return_stats=return_stats)
    crops = checks.check_assign(OP, assign, features.shape[0])
    check_queue(OP, queue, features, len(crops))
    dtype = torch.promote_types(features.dtype, prototypes.dtype)
    name = dispatch.choose_backend(OP, features.device, dtype, backend)
    checks.check_readable(OP, name, features=features, prototypes=prototypes, queue=queue)
    if queue is not None and queue.dtype == torch.float64:
        queue = queue.to(dtype)  # features and prototypes alone tell what the sums run in
    if normalize:
        features = checks.normalize_rows(features)
        queue = None if queue is None else checks.normalize_rows(queue.detach())
    if potentials is None:
        warn_if_ungrouped(OP, group)
        assign_features = features.detach()
        if crops == tuple(range(len(crops))):
            assign_features = assign_features[: len(crops)]
        else:  # not features[list(crops)]: an index tensor would synchronise host and GPU
            assign_features = torch.stack([assign_features[crop] for crop in crops])
        f = balance(
            OP, assign_features, prototypes.detach(), epsilon, iterations,
            None if queue is None else queue.detach(), group, prototype_weights, None, precision,
            name,
        )  # fmt: skip
    else:
        f = _check_potentials(
            potentials, len(crops), features, prototypes, queue,
            None if return_stats else group, prototype_weights, name,
        )  # fmt: skip
        group = resolve_group(OP, group)
    features, prototypes = checks.promote(features.contiguous(), prototypes.contiguous())
    settings = _Settings(crops, temperature, epsilon, hard, precision)
    rows: CodeStatistics | None
    if name == "reference":
        acc = checks.accumulate_dtype(features)
        loss, rows = reference.swav_loss(features.to(acc), prototypes.to(acc), f, *settings)
    else:
        loss, rows = _run(
            features, prototypes, f, settings, return_stats, dispatch.kernels(OP, name)
        )
    if not return_stats:
        return loss
    assert rows is not None
    return loss, summarise(rows, loss, prototype_weights, group)


class _Settings(NamedTuple):
    assign: tuple[int, ...]
    temperature: float
    epsilon: float
    hard: bool
    precision: str


def _run(
    features: Tensor,
    prototypes: Tensor,
    f: Tensor,
    settings: _Settings,
    need_stats: bool,
    kernels: ModuleType,
) -> tuple[Tensor, CodeStatistics | None]:
    if torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad):
        loss, *rows = _SwavLoss.apply(features, prototypes, f, settings, need_stats, kernels)  # type: ignore[no-untyped-call]
        return loss, CodeStatistics(*rows) if need_stats else None
    loss, _, _, statistics = kernels.loss_and_gradients(
        features.detach(), prototypes.detach(), f, *settings, False, False, need_stats
    )
    return loss, statistics


class _SwavLoss(torch.autograd.Function):
    """Loss and gradients come from one pass over the scores, which are then gone."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        f: Tensor,
        settings: _Settings,
        need_stats: bool,
        kernels: ModuleType,
    ) -> tuple[Tensor, ...]:
        loss, d_features, d_prototypes, statistics = kernels.loss_and_gradients(
            features, prototypes, f, *settings, *ctx.needs_input_grad[:2], need_stats
        )
        ready_gradient.save(ctx, d_features, d_prototypes)
        ctx.dtype = features.dtype
        rows = tuple(statistics) if need_stats else ()
        ctx.mark_non_differentiable(*rows)
        return loss, *rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (*ready_gradient.scaled(ctx, grad_output, ctx.dtype), None, None, None, None)


def _check_potentials(
    potentials: Tensor,
    num_crops: int,
    features: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    group: Group,
    prototype_weights: Tensor | None,
    name: str,
) -> Tensor:
    for argument, value in (
        ("queue", queue),
        ("group", group),
        ("prototype_weights", prototype_weights),
    ):
        if value is not None:
            raise ValueError(
                f"{OP}: {argument} was given beside potentials, which take the Sinkhorn's place; "
                f"pass {argument} to swav_potentials instead"
            )
    acc = checks.accumulate_dtype(features, prototypes)
    return check_potentials(OP, potentials, "A", num_crops, prototypes, acc, name)
