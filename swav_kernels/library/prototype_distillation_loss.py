"""`torch.ops.swav_kernels.prototype_distillation_loss`: the loss and the student's gradients."""

import functools

from torch import Tensor

from swav_kernels.distributed import named_group
from swav_kernels.library.define import (
    define,
    filled,
    keep_gradients,
    reference_gradients,
    scale_gradients,
)
from swav_kernels.ops import prototype_distillation_loss_problem as op


def _loss(
    student_features: Tensor,
    student_prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    potentials: Tensor | None,
    weights: Tensor | None,
    group: str | None,
    precision: str,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = op.prepare(
        student_features.detach(), student_prototypes.detach(), teacher_features,
        teacher_prototypes, temperature, epsilon, iterations, potentials, weights,
        named_group(group), precision, backend,
    )  # fmt: skip
    needed = need_features, need_prototypes
    if problem.kernels is None:
        acc = problem.inputs[4].dtype
        loss, gradients, _ = reference_gradients(
            lambda z, c: (op.reference_loss((z, c, *problem.inputs[2:]), problem.settings), ()),
            [x.to(acc) for x in problem.inputs[:2]],
            needed,
        )
    else:
        loss, *gradients = problem.kernels.loss_and_gradients(
            *problem.inputs, *problem.settings, *needed
        )
    d_features, d_prototypes = (filled(x, loss) for x in gradients)
    if need_features:  # rows are one crop to the kernels
        d_features = d_features.view(student_features.shape)
    return loss, d_features, d_prototypes


def _shapes(
    student_features: Tensor,
    student_prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    potentials: Tensor | None,
    weights: Tensor | None,
    group: str | None,
    precision: str,
    need_features: bool,
    need_prototypes: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, acc = op.check(
        student_features, student_prototypes, teacher_features, teacher_prototypes, temperature,
        epsilon, iterations, precision, backend,
    )  # fmt: skip
    new = functools.partial(student_features.new_empty, dtype=acc)
    return (
        new(()),
        new(student_features.shape if need_features else ()),
        new(student_prototypes.shape if need_prototypes else ()),
    )


define(
    f"{op.OP}(Tensor student_features, Tensor student_prototypes, Tensor teacher_features, "
    "Tensor teacher_prototypes, float temperature, float epsilon, int iterations, "
    "Tensor? potentials, Tensor? weights, str? group, str precision, bool need_features, "
    "bool need_prototypes, str? backend) -> (Tensor, Tensor, Tensor)",
    _loss,
    _shapes,
    setup=functools.partial(keep_gradients, 2),
    backward=functools.partial(scale_gradients, op.OP),
)
