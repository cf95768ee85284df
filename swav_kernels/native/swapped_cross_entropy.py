"""The swapped cross-entropy by the compiled module."""

import torch
from torch import Tensor

from swav_kernels.checks import accumulate_dtype
from swav_kernels.native import address, cpu_kernels, typed_address


def loss_and_gradient(
    scores: Tensor, codes: Tensor, assign: tuple[int, ...], temperature: float, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """[V, B, K], [A, B, K] -> the loss [] and d_scores [V, B, K], None unless needed."""
    acc = accumulate_dtype(scores, codes)
    num_crops, num_samples, num_prototypes = scores.shape
    loss = torch.empty((), dtype=acc, device="cpu")
    d_scores = torch.empty(scores.shape, dtype=acc, device="cpu") if need_gradient else None
    cpu_kernels(acc).swapped_cross_entropy(
        *typed_address(scores), *typed_address(codes), address(loss), address(d_scores),
        num_crops, num_samples, num_prototypes, assign, temperature, torch.get_num_threads(),
    )  # fmt: skip
    return loss, d_scores
