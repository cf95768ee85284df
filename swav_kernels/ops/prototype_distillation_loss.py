"""Public op `prototype_distillation_loss`: a student predicts the codes of another network.

Its Sinkhorn is that of `swav_potentials`; the loss has kernels of its own.
"""

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.distributed import Group, group_name
from swav_kernels.ops import route
from swav_kernels.ops.prototype_distillation_loss_problem import OP, prepare
from swav_kernels.ops.sinkhorn import DEFAULT_ITERATIONS
from swav_kernels.ops.swapped_cross_entropy import DEFAULT_TEMPERATURE

DEFAULT_TEACHER_EPSILON = 0.07  # DINO's temperature of the teacher, after its warm-up


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
    tensors = student_features, student_prototypes, teacher_features, teacher_prototypes
    if not route.is_traced():
        return prepare(
            *tensors, temperature, epsilon, iterations, potentials, weights, group, precision,
            backend,
        ).run()  # fmt: skip
    grad = torch.is_grad_enabled()
    loss: Tensor = torch.ops.swav_kernels.prototype_distillation_loss(
        *tensors, temperature, epsilon, iterations, route.detached(potentials),
        route.detached(weights), group_name(OP, group), precision,
        grad and student_features.requires_grad, grad and student_prototypes.requires_grad,
        backend,
    )[0]  # fmt: skip
    return loss
