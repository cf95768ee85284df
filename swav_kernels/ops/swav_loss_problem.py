"""One checked SwAV loss, potentials and all, and the backend that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, resolve_group, warn_if_ungrouped
from swav_kernels.ops import ready_gradient
from swav_kernels.ops.swav_potentials import balance, check_features, check_potentials, check_queue
from swav_kernels.reference import swav_loss as reference
from swav_kernels.stats import CodeStatistics, summarise

OP = "swav_loss"


class Settings(NamedTuple):
    """What the kernels take besides tensors."""

    assign: tuple[int, ...]
    temperature: float
    epsilon: float
    hard: bool
    precision: str


@dataclass(slots=True)
class Problem:
    """Checked tensors of one call, and the backend that runs it (None: the reference)."""

    features: Tensor  # [V, B, D]
    prototypes: Tensor  # [K, D], in the dtype of features
    f: Tensor  # [A, K]
    settings: Settings
    prototype_weights: Tensor | None
    group: Group
    kernels: ModuleType | None

    def run(self, need_stats: bool) -> tuple[Tensor, CodeStatistics | None]:
        """The loss with its graph, and the statistics of the codes."""
        features, prototypes, f = self.features, self.prototypes, self.f
        if self.kernels is None:
            acc = checks.accumulate_dtype(features)
            return reference.swav_loss(features.to(acc), prototypes.to(acc), f, *self.settings)
        if torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad):
            loss, *rows = _SwavLoss.apply(  # type: ignore[no-untyped-call]
                features, prototypes, f, self.settings, need_stats, self.kernels
            )
            return loss, CodeStatistics(*rows) if need_stats else None
        loss, _, _, statistics = self.kernels.loss_and_gradients(
            features.detach(), prototypes.detach(), f, *self.settings, False, False, need_stats
        )
        return loss, statistics

    def stats(self, loss: Tensor, rows: CodeStatistics | None) -> dict[str, Tensor]:
        """The telemetry of all ranks of the group."""
        assert rows is not None
        return summarise(rows, loss, self.prototype_weights, self.group)


class _SwavLoss(torch.autograd.Function):
    """Loss and gradients come from one pass over the scores, which are then gone."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        f: Tensor,
        settings: Settings,
        need_stats: bool,
        kernels: ModuleType,
    ) -> tuple[Tensor, ...]:
        loss, d_features, d_prototypes, statistics = kernels.loss_and_gradients(
            features, prototypes, f, *settings, *ctx.needs_input_grad[:2], need_stats
        )
        ready_gradient.save(ctx, OP, (features, prototypes, f), d_features, d_prototypes)
        ctx.dtype, ctx.settings = features.dtype, settings
        rows = tuple(statistics) if need_stats else ()
        ctx.mark_non_differentiable(*rows)
        return loss, *rows

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        def again(
            features: Tensor, prototypes: Tensor, f: Tensor
        ) -> tuple[tuple[Tensor, Tensor], Tensor]:
            z, c = features.to(f.dtype), prototypes.to(f.dtype)
            return (features, prototypes), reference.swav_loss(z, c, f, *ctx.settings)[0]

        gradients = ready_gradient.of(ctx, grad_output, ctx.dtype, again)
        return (*gradients, None, None, None, None)


def check(
    features: Tensor,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    assign: Sequence[int],
    queue: Tensor | None,
    hard: bool,
    precision: str,
    normalize: bool,
    return_stats: bool,
    backend: str | None,
) -> tuple[str, int, Settings]:
    """Return the backend, the iterations and the settings of checked arguments."""
    check_features(OP, features, prototypes, "[V, B, D]")
    temperature = checks.check_scale(OP, "temperature", temperature)
    epsilon = checks.check_scale(OP, "epsilon", epsilon)
    iterations = checks.check_iterations(OP, iterations, 1)
    checks.check_precision(OP, precision)
    checks.check_flags(OP, hard=hard, normalize=normalize, return_stats=return_stats)
    crops = checks.check_assign(OP, assign, features.shape[0])
    check_queue(OP, queue, features, len(crops))
    dtype = torch.promote_types(features.dtype, prototypes.dtype)
    name = dispatch.choose_backend(
        OP, features.device, dtype, backend,
        features=features, prototypes=prototypes, queue=queue,
    )  # fmt: skip
    return name, iterations, Settings(crops, temperature, epsilon, hard, precision)


def prepare(
    features: Tensor,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    assign: Sequence[int],
    queue: Tensor | None,
    potentials: Tensor | None,
    group: Group,
    hard: bool,
    prototype_weights: Tensor | None,
    precision: str,
    normalize: bool,
    return_stats: bool,
    backend: str | None,
) -> Problem:
    """Check the arguments of `swav_loss`, choose the backend and balance the codes."""
    name, iterations, settings = check(
        features, prototypes, temperature, epsilon, iterations, assign, queue, hard, precision,
        normalize, return_stats, backend,
    )  # fmt: skip
    checks.check_readable(OP, name, features=features, prototypes=prototypes, queue=queue)
    crops, epsilon = settings.assign, settings.epsilon
    if queue is not None:
        queue = queue.detach()
        if queue.dtype == torch.float64:  # features and prototypes alone tell what sums run in
            queue = queue.to(torch.promote_types(features.dtype, prototypes.dtype))
    if normalize:
        features = checks.normalize_rows(features)
        queue = None if queue is None else checks.normalize_rows(queue)
    if potentials is None:
        warn_if_ungrouped(OP, group, stacklevel=5)  # past `prepare` too
        assign_features = features.detach()
        if crops == tuple(range(len(crops))):
            assign_features = assign_features[: len(crops)]
        else:  # not features[list(crops)]: an index tensor would synchronise host and GPU
            assign_features = torch.stack([assign_features[crop] for crop in crops])
        f = balance(
            OP, assign_features, prototypes.detach(), epsilon, iterations, queue, group,
            prototype_weights, None, precision, name,
        )  # fmt: skip
    else:
        f = _check_potentials(
            potentials, len(crops), features, prototypes, queue,
            None if return_stats else group, prototype_weights, name,
        )  # fmt: skip
        group = resolve_group(OP, group)
    features, prototypes = checks.promote(features.contiguous(), prototypes.contiguous())
    kernels = None if name == "reference" else dispatch.kernels(OP, name)
    return Problem(features, prototypes, f, settings, prototype_weights, group, kernels)


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
