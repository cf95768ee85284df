"""A student predicts a teacher's codes, both from features and prototypes of their own."""

import torch
from torch import Tensor

from swav_kernels.reference import sinkhorn
from swav_kernels.reference.prototype_cross_entropy import prototype_cross_entropy
from swav_kernels.reference.swapped_cross_entropy import swapped_cross_entropy
from swav_kernels.reference.swav_loss import scores


def prototype_distillation_loss(
    student_features: Tensor, student_prototypes: Tensor, teacher_features: Tensor,
    teacher_prototypes: Tensor, potentials: Tensor, sample_weights: Tensor | None,
    assign: tuple[int, ...], temperature: float, epsilon: float, precision: str,
) -> Tensor:  # fmt: skip
    """[S, B, D], [K, D], [T, B, E], [K, E], [T, K], [B] -> the loss, differentiable.

    A student crop predicts the codes of every teacher crop but that of its number in `assign`.
    """
    student = scores(student_features, student_prototypes, precision)
    with torch.no_grad():
        teacher = scores(teacher_features, teacher_prototypes, precision)
        codes = sinkhorn.codes(teacher, potentials, epsilon, hard=False)
    if len(student) == 1:
        return prototype_cross_entropy(student[0], codes[0], temperature, sample_weights)
    if sample_weights is not None:
        codes = codes * sample_weights.unsqueeze(1)
    return swapped_cross_entropy(student, codes, assign, temperature)
