"""A student's loss against a teacher's codes by the compiled module."""

import torch
from torch import Tensor

from swav_kernels.native import address, cpu_kernels
from swav_kernels.native.swav_loss import operands, sizes


def loss_and_gradients(
    student_features: Tensor,
    student_prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    f: Tensor,
    sample_weights: Tensor | None,
    assign: tuple[int, ...],
    temperature: float,
    epsilon: float,
    precision: str,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[S, B, D], [K, D], [T, B, E], [K, E], [T, K], [B] -> loss [], d_features, d_prototypes."""
    acc = f.dtype
    features, prototypes = operands(student_features, student_prototypes, precision, acc)
    teacher, teacher_prototypes = operands(teacher_features, teacher_prototypes, precision, acc)
    loss = torch.empty((), dtype=acc, device="cpu")
    d_features = torch.empty_like(features) if need_features else None
    d_prototypes = torch.empty_like(prototypes) if need_prototypes else None
    cpu_kernels(acc).prototype_distillation_loss(
        address(features), address(prototypes), address(teacher), address(teacher_prototypes),
        address(f), address(sample_weights), address(loss), address(d_features),
        address(d_prototypes), *sizes(features, prototypes), teacher.shape[-1], assign,
        temperature, epsilon, precision == "bfloat16", torch.get_num_threads(),
    )  # fmt: skip
    return loss, d_features, d_prototypes
