"""`torch.ops.swav_kernels.swav_loss`: the loss, its gradients and its telemetry."""

import functools

from torch import Tensor

from swav_kernels import checks
from swav_kernels.distributed import named_group
from swav_kernels.library.define import (
    define,
    filled,
    keep_gradients,
    reference_gradients,
    scale_gradients,
)
from swav_kernels.ops import swav_loss_problem as op
from swav_kernels.reference import swav_loss as reference
from swav_kernels.stats import KEYS, packed

Results = tuple[Tensor, Tensor, Tensor, Tensor]


def _loss(
    features: Tensor,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    assign: list[int],
    queue: Tensor | None,
    potentials: Tensor | None,
    group: str | None,
    hard: bool,
    prototype_weights: Tensor | None,
    precision: str,
    return_stats: bool,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> Results:
    problem = op.prepare(
        features.detach(), prototypes.detach(), temperature, epsilon, iterations, assign, queue,
        potentials, named_group(group), hard, prototype_weights, precision, False, return_stats,
        backend,
    )  # fmt: skip
    inputs, needed = (problem.features, problem.prototypes), (need_features, need_prototypes)
    if problem.kernels is None:
        loss, gradients, rows = reference_gradients(
            lambda z, c: reference.swav_loss(z, c, problem.f, *problem.settings),
            [x.to(problem.f.dtype) for x in inputs],
            needed,
        )
    else:
        loss, *gradients, rows = problem.kernels.loss_and_gradients(
            *inputs, problem.f, *problem.settings, *needed, return_stats
        )
    stats = packed(problem.stats(loss, rows)) if return_stats else loss.new_zeros(())
    d_features, d_prototypes = (filled(x, loss) for x in gradients)
    return loss, d_features, d_prototypes, stats


def _shapes(
    features: Tensor,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    assign: list[int],
    queue: Tensor | None,
    potentials: Tensor | None,
    group: str | None,
    hard: bool,
    prototype_weights: Tensor | None,
    precision: str,
    return_stats: bool,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> Results:
    op.check(
        features, prototypes, temperature, epsilon, iterations, assign, queue, hard, precision,
        False, return_stats, backend,
    )  # fmt: skip
    acc = checks.accumulate_dtype(features, prototypes)
    new = functools.partial(features.new_empty, dtype=acc)
    return (
        new(()),
        new(features.shape if need_features else ()),
        new(prototypes.shape if need_prototypes else ()),
        new((len(KEYS),) if return_stats else ()),
    )


define(
    f"{op.OP}(Tensor features, Tensor prototypes, float temperature, float epsilon, "
    "int iterations, int[] assign, Tensor? queue, Tensor? potentials, str? group, bool hard, "
    "Tensor? prototype_weights, str precision, bool return_stats, bool need_features, "
    "bool need_prototypes, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _loss,
    _shapes,
    setup=functools.partial(keep_gradients, 2),
    backward=functools.partial(scale_gradients, op.OP),
)
