"""A student's loss against a teacher's codes, of whose K scores a row nothing is ever stored.

The streamed kernels of swav_loss, with the teacher's features and prototypes in the place of the
assign crops: the codes' barycentres are sums of the student's prototypes.
"""

import torch
from torch import Tensor

from swav_kernels.triton_kernels.crop_loss import crop_loss
from swav_kernels.triton_kernels.d_prototypes import d_prototypes
from swav_kernels.triton_kernels.launch import on_its_device, target_of
from swav_kernels.triton_kernels.product_tiles import tiles
from swav_kernels.triton_kernels.rows import row_sums
from swav_kernels.triton_kernels.scores import Scores


@on_its_device
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
    if student_features.shape[1] == 0:
        return (
            student_features.new_zeros((), dtype=torch.float32),
            torch.zeros_like(student_features, dtype=torch.float32) if need_features else None,
            torch.zeros_like(student_prototypes, dtype=torch.float32) if need_prototypes else None,
        )
    # blocks for the dimensions of both: a score has the same bits wherever it is formed again
    num_prototypes, teacher_dim = teacher_prototypes.shape
    block = tiles(
        student_features.shape[1], num_prototypes, max(student_features.shape[2], teacher_dim),
        student_features.dtype, precision, target_of(student_features.device),
    )  # fmt: skip
    p = row_sums(
        Scores(student_features, student_prototypes, precision), None, temperature, block.rows,
        values=need_features,
    )  # fmt: skip
    q = row_sums(
        Scores(teacher_features, teacher_prototypes, precision), f, epsilon, block.rows,
        values=True, others=student_prototypes,
    )  # fmt: skip
    loss, d_features = crop_loss(
        student_features, student_prototypes, p, q, assign, temperature, precision, need_features,
        block.crops, sample_weights,
    )  # fmt: skip
    gradient = None
    if need_prototypes:
        gradient = d_prototypes(
            student_features, student_prototypes, f, p, q, assign, temperature, epsilon, precision,
            block.d_prototypes, (teacher_features, teacher_prototypes), sample_weights,
        )  # fmt: skip
    return loss, d_features, gradient
