"""One checked distillation, potentials and all, and the backend that runs it."""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, warn_if_ungrouped
from swav_kernels.ops import ready_gradient
from swav_kernels.ops.swav_potentials import balance, check_potentials
from swav_kernels.reference import prototype_distillation_loss as reference

OP = "prototype_distillation_loss"
TENSORS = "student_features", "student_prototypes", "teacher_features", "teacher_prototypes"
NO_CROP = -1  # in `assign`: codes of no crop of the student, so that every crop predicts them


class Problem(NamedTuple):
    """Checked tensors of one call, and the backend that runs it (None: the reference)."""

    inputs: tuple[Any, ...]  # crops and prototypes of student and teacher, f [T, K], weights
    settings: "Settings"
    kernels: ModuleType | None

    def run(self) -> Tensor:
        """The loss with its graph."""
        student, prototypes, *rest = self.inputs
        if self.kernels is None:
            return reference_loss(self.inputs, self.settings)
        if torch.is_grad_enabled() and (student.requires_grad or prototypes.requires_grad):
            loss: Tensor = _Distillation.apply(*self.inputs, self.settings, self.kernels)  # type: ignore[no-untyped-call]
            return loss
        loss, _, _ = self.kernels.loss_and_gradients(
            student.detach(), prototypes.detach(), *rest, *self.settings, False, False
        )
        return loss


def reference_loss(inputs: tuple[Any, ...], settings: "Settings") -> Tensor:
    """The loss of the reference, in the dtype of the potentials."""
    *tensors, f, weights = inputs
    student, prototypes, teacher, teacher_prototypes = (x.to(f.dtype) for x in tensors)
    return reference.prototype_distillation_loss(
        student, prototypes, teacher, teacher_prototypes, f, weights, *settings
    )


def check(
    student_features: Tensor,
    student_prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    precision: str,
    backend: str | None,
) -> tuple[str, int, "Settings", torch.dtype]:
    """Return backend, iterations, settings and the dtype of the sums of checked arguments."""
    tensors = student_features, student_prototypes, teacher_features, teacher_prototypes
    _check_sides(*tensors)
    temperature = checks.check_scale(OP, "temperature", temperature)
    epsilon = checks.check_scale(OP, "epsilon", epsilon)
    iterations = checks.check_iterations(OP, iterations, 1)
    checks.check_precision(OP, precision)
    acc = checks.accumulate_dtype(*tensors)
    name = dispatch.choose_backend(
        OP, student_features.device, acc, backend, OP, **dict(zip(TENSORS, tensors, strict=True))
    )
    num_crops = 1 if student_features.dim() == 2 else teacher_features.shape[0]
    assign = (NO_CROP,) if student_features.dim() == 2 else tuple(range(num_crops))
    return name, iterations, Settings(assign, temperature, epsilon, precision), acc


def prepare(
    student_features: Tensor,
    student_prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    potentials: Tensor | None,
    weights: Tensor | None,
    group: Group,
    precision: str,
    backend: str | None,
) -> Problem:
    """Check the arguments, choose the backend and balance the codes."""
    tensors = student_features, student_prototypes, teacher_features, teacher_prototypes
    name, iterations, settings, acc = check(
        *tensors, temperature, epsilon, iterations, precision, backend
    )
    checks.check_readable(OP, name, **dict(zip(TENSORS, tensors, strict=True)))
    num_samples = student_features.shape[-2]
    weights = _check_weights(weights, num_samples, student_features, acc, name)
    student, student_prototypes, teacher, teacher_prototypes = (
        x.contiguous()
        for x in checks.promote(
            _as_crops(student_features), student_prototypes,
            _as_crops(teacher_features.detach()), teacher_prototypes.detach(),
        )
    )  # fmt: skip
    num_crops = teacher.shape[0]
    if potentials is None:
        warn_if_ungrouped(OP, group, stacklevel=5)  # past `prepare` too
        rows = teacher.reshape(1, -1, teacher.shape[-1])
        f = balance(
            OP, rows, teacher_prototypes, settings.epsilon, iterations, None, group, None, None,
            precision, name,
        ).expand(num_crops, -1).contiguous()  # fmt: skip
    else:
        if group is not None:
            raise ValueError(
                f"{OP}: group was given beside potentials, which take the Sinkhorn's place; "
                "pass group to swav_potentials instead"
            )
        f = check_potentials(OP, potentials, "T", num_crops, teacher_prototypes, acc, name)
    inputs = (student, student_prototypes, teacher, teacher_prototypes, f, weights)
    return Problem(inputs, settings, None if name == "reference" else dispatch.kernels(OP, name))


class Settings(NamedTuple):
    """What the kernels take besides tensors."""

    assign: tuple[int, ...]
    temperature: float
    epsilon: float
    precision: str


class _Distillation(torch.autograd.Function):
    """Loss and gradients come from one pass over the scores, which are then gone."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        f: Tensor,
        weights: Tensor | None,
        settings: Settings,
        kernels: ModuleType,
    ) -> Tensor:
        loss: Tensor
        loss, d_features, d_prototypes = kernels.loss_and_gradients(
            student, prototypes, teacher, teacher_prototypes, f, weights, *settings,
            *ctx.needs_input_grad[:2],
        )  # fmt: skip
        inputs = student, prototypes, teacher, teacher_prototypes, f
        ready_gradient.save(ctx, OP, inputs, d_features, d_prototypes)
        ctx.dtype, ctx.weights, ctx.settings = student.dtype, weights, settings
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        def again(*inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            return inputs[:2], reference_loss((*inputs, ctx.weights), ctx.settings)

        return (*ready_gradient.of(ctx, grad_output, ctx.dtype, again), *[None] * 6)


def _check_sides(
    student: Tensor, student_prototypes: Tensor, teacher: Tensor, teacher_prototypes: Tensor
) -> None:
    """Require that each side's features fit its prototypes, and the sides each other."""
    checks.check_tensor(OP, "student_features", student, "[N, D]", "[S, B, D]")
    is_rows = student.dim() == 2
    checks.check_tensor(OP, "teacher_features", teacher, "[N, E]" if is_rows else "[T, B, E]")
    checks.check_tensor(OP, "student_prototypes", student_prototypes, "[K, D]")
    checks.check_tensor(OP, "teacher_prototypes", teacher_prototypes, "[K, E]")
    for side, features, prototypes, letter in (
        ("student", student, student_prototypes, "D"),
        ("teacher", teacher, teacher_prototypes, "E"),
    ):
        num_prototypes, dim = prototypes.shape
        layout = f"[N, {letter}]" if is_rows else f"[{side[0].upper()}, B, {letter}]"
        checks.check_shape(OP, f"{side}_features", features, (*features.shape[:-1], dim), layout)
        checks.check_not_empty(OP, f"{side}_prototypes", num_prototypes, "K")
        checks.check_not_empty(OP, f"{side}_prototypes", dim, letter)
    num_prototypes, dim = student_prototypes.shape[0], teacher_prototypes.shape[1]
    checks.check_shape(
        OP, "teacher_prototypes", teacher_prototypes, (num_prototypes, dim), "[K, E]"
    )
    num_crops = 1 if is_rows else teacher.shape[0]
    paired = (*([] if is_rows else [num_crops]), student.shape[-2], dim)
    checks.check_shape(
        OP, "teacher_features", teacher, paired, "[N, E]" if is_rows else "[T, B, E]"
    )
    if not is_rows and not (student.shape[0] >= 2 and 1 <= num_crops <= student.shape[0]):
        raise ValueError(
            f"{OP}: student_features must have S >= 2 crops and teacher_features T from 1 to S, "
            f"got S = {student.shape[0]} and T = {num_crops}; teacher crop i is the view of "
            "student crop i, which does not predict it; paired rows are [N, D] and [N, E]"
        )
    checks.check_same_device(
        OP, student_features=student, student_prototypes=student_prototypes,
        teacher_features=teacher, teacher_prototypes=teacher_prototypes,
    )  # fmt: skip


def _check_weights(
    weights: Tensor | None, num_samples: int, student: Tensor, acc: torch.dtype, backend: str
) -> Tensor | None:
    if weights is None:
        return None
    letter = "[N]" if student.dim() == 2 else "[B]"
    checks.check_tensor(OP, "weights", weights, letter)
    checks.check_shape(OP, "weights", weights, (num_samples,), letter)
    checks.check_same_device(OP, student_features=student, weights=weights)
    checks.check_readable(OP, backend, weights=weights)
    return weights.detach().to(acc).contiguous()


def _as_crops(features: Tensor) -> Tensor:
    return features.unsqueeze(0) if features.dim() == 2 else features
