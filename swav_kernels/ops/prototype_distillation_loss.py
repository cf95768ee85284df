"""Public op `prototype_distillation_loss`: a student predicts the codes of another network.

Its Sinkhorn is that of `swav_potentials`; the loss has kernels of its own.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, warn_if_ungrouped
from swav_kernels.ops import ready_gradient
from swav_kernels.ops.sinkhorn import DEFAULT_ITERATIONS
from swav_kernels.ops.swapped_cross_entropy import DEFAULT_TEMPERATURE
from swav_kernels.ops.swav_potentials import balance, check_potentials
from swav_kernels.reference import prototype_distillation_loss as reference

OP = "prototype_distillation_loss"
DEFAULT_TEACHER_EPSILON = 0.07  # DINO's temperature of the teacher, after its warm-up
NO_CROP = -1  # in `assign`: codes of no crop of the student, so that every crop predicts them


@checks.without_autocast
def prototype_distillation_loss(
    student_features: Tensor,
    student_prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    epsilon: float = DEFAULT_TEACHER_EPSILON,
    iterations: int = DEFAULT_ITERATIONS,
    potentials: Tensor | None = None,
    weights: Tensor | None = None,
    group: Group = None,
    precision: str = "float32",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of a student with a teacher's codes, from the features of both (DINO, iBOT).

    Of rows, with `s = student_features @ student_prototypes.T` and `t` the teacher's likewise:
    `loss = -(weights * (q * log_softmax(s / temperature, -1)).sum(-1)).sum() / N` with
    `q = softmax(t / epsilon + f, -1)`. On `cpu` and `triton` nothing of size N * K is stored.

    Of crops it is the multi-crop loss of DINO: student crop i and teacher crop i are of the same
    view, and every student crop predicts the codes of every teacher crop but its own; the mean
    over these pairs and the samples.

    Args:
        student_features: [N, D], or [S, B, D], S >= 2 crops of B samples.
        student_prototypes: [K, D].
        teacher_features: [N, E], or [T, B, E] with T <= S. The teacher carries no gradient.
        teacher_prototypes: [K, E].
        temperature: of the student's softmax, from 1e-30 to 1e30.
        epsilon: of the teacher's softmax, from 1e-30 to 1e30.
        iterations: T >= 1, of the Sinkhorn, which balances all rows of the teacher together, its
            crops too, each row counting once whatever its weight.
        potentials: f [K], or [T, K], in place of the Sinkhorn. `-centre / epsilon` is DINO's
            centring of t by `centre` [K], zeros are no centring, and `swav_potentials` gives
            those of a Sinkhorn for each crop or with sample_weights. Carries no gradient.
        weights: [N] or [B], how much a row or sample counts; None is 1 each. Carries no gradient.
            The rows of iBOT are the masked patches of all images, in any number an image;
            its mean over images is `weights = N / num_images / masked_patches_of_the_row's_image`.
        group: the process group the codes are balanced over; the loss stays this rank's mean.
        precision: "bfloat16" rounds the operands of the products, sums stay float32.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        The loss, a float32 scalar (float64 if any features or prototypes are); 0 for no rows.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or shapes, devices or the backend do not fit.

    Example:
        >>> unit = torch.nn.functional.normalize
        >>> z, c = unit(torch.randn(5, 8), dim=1), unit(torch.randn(7, 8), dim=1).requires_grad_()
        >>> t, e = unit(torch.randn(5, 6), dim=1), unit(torch.randn(7, 6), dim=1)
        >>> prototype_distillation_loss(z, c, t, e, potentials=torch.zeros(7)).backward()
        >>> c.grad.shape
        torch.Size([7, 8])

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), equations 2 to 4; Zhou et al. 2022 (iBOT,
    arXiv 2111.07832), equation 2; the Sinkhorn in their place: Oquab et al. 2023 (DINOv2, arXiv
    2304.07193), section 4.
    """
    _check_sides(student_features, student_prototypes, teacher_features, teacher_prototypes)
    temperature = checks.check_scale(OP, "temperature", temperature)
    epsilon = checks.check_scale(OP, "epsilon", epsilon)
    iterations = checks.check_iterations(OP, iterations, 1)
    checks.check_precision(OP, precision)
    is_rows = student_features.dim() == 2
    tensors = {
        "student_features": student_features, "student_prototypes": student_prototypes,
        "teacher_features": teacher_features, "teacher_prototypes": teacher_prototypes,
    }  # fmt: skip
    acc = checks.accumulate_dtype(*tensors.values())
    name = dispatch.choose_backend(OP, student_features.device, acc, backend)
    checks.check_readable(OP, name, **tensors)
    num_samples = student_features.shape[-2]
    weights = _check_weights(weights, num_samples, student_features, acc, name)
    student, student_prototypes, teacher, teacher_prototypes = (
        x.contiguous()
        for x in checks.promote(
            _as_crops(student_features), student_prototypes,
            _as_crops(teacher_features.detach()), teacher_prototypes.detach(),
        )
    )  # fmt: skip
    num_teacher_crops = teacher.shape[0]
    if potentials is None:
        warn_if_ungrouped(OP, group)
        rows = teacher.reshape(1, -1, teacher.shape[-1])
        f = balance(
            OP, rows, teacher_prototypes, epsilon, iterations, None, group, None, None, precision,
            name,
        ).expand(num_teacher_crops, -1).contiguous()  # fmt: skip
    else:
        if group is not None:
            raise ValueError(
                f"{OP}: group was given beside potentials, which take the Sinkhorn's place; "
                "pass group to swav_potentials instead"
            )
        f = check_potentials(OP, potentials, "T", num_teacher_crops, teacher_prototypes, acc, name)
    assign = (NO_CROP,) if is_rows else tuple(range(num_teacher_crops))
    settings = _Settings(assign, temperature, epsilon, precision)
    if name == "reference":
        return reference.prototype_distillation_loss(
            student.to(acc), student_prototypes.to(acc), teacher.to(acc),
            teacher_prototypes.to(acc), f, weights, *settings,
        )  # fmt: skip
    inputs = (student, student_prototypes, teacher, teacher_prototypes, f, weights)
    kernels = dispatch.kernels(OP, name)
    if torch.is_grad_enabled() and (student.requires_grad or student_prototypes.requires_grad):
        loss: Tensor = _Distillation.apply(*inputs, settings, kernels)  # type: ignore[no-untyped-call]
        return loss
    student, student_prototypes = student.detach(), student_prototypes.detach()
    loss, _, _ = kernels.loss_and_gradients(
        student, student_prototypes, *inputs[2:], *settings, False, False
    )
    return loss


class _Settings(NamedTuple):
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
        settings: _Settings,
        kernels: ModuleType,
    ) -> Tensor:
        loss: Tensor
        loss, d_features, d_prototypes = kernels.loss_and_gradients(
            student, prototypes, teacher, teacher_prototypes, f, weights, *settings,
            *ctx.needs_input_grad[:2],
        )  # fmt: skip
        ready_gradient.save(ctx, d_features, d_prototypes)
        ctx.dtype = student.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return (*ready_gradient.scaled(ctx, grad_output, ctx.dtype), *[None] * 6)


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
