"""Sinkhorn over scores by the compiled module, on the CPU or the GPU that they live on."""

import torch
from torch import Tensor

from swav_kernels.checks import accumulate_dtype
from swav_kernels.native import address, cpu_kernels, typed_address


def sinkhorn(scores: Tensor, epsilon: float, iterations: int, out: Tensor) -> None:
    """Write soft codes [A, N, K], without weights; `out` may be `scores` itself."""
    cpu_kernels(out.dtype).sinkhorn(
        *typed_address(scores), address(out), *scores.shape, epsilon, iterations,
        torch.get_num_threads(),
    )  # fmt: skip


def potentials(
    scores: Tensor,
    sample_weights: Tensor | None,
    log_prototype_weights: Tensor | None,
    epsilon: float,
    iterations: int,
) -> Tensor:
    """[A, N, K] -> f [A, K] after all iterations."""
    f = _per_prototype(scores)
    cpu_kernels(f.dtype).sinkhorn_potentials(
        *typed_address(scores), address(sample_weights), address(log_prototype_weights),
        address(f), *scores.shape, epsilon, iterations, torch.get_num_threads(),
    )  # fmt: skip
    return f


def column_stats(
    scores: Tensor, sample_weights: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """First sweep: maximum and sum over the samples, [A, K] each."""
    column_max, sums = _per_prototype(scores), _per_prototype(scores)
    cpu_kernels(sums.dtype).sinkhorn_column_stats(
        *typed_address(scores), address(sample_weights), address(column_max), address(sums),
        *scores.shape, epsilon, torch.get_num_threads(),
    )  # fmt: skip
    return column_max, sums


def column_sums(scores: Tensor, f: Tensor, sample_weights: Tensor | None, epsilon: float) -> Tensor:
    """Later sweeps: sums [A, K] of the codes that f stands for."""
    sums = _per_prototype(scores)
    cpu_kernels(sums.dtype).sinkhorn_column_sums(
        *typed_address(scores), address(f), address(sample_weights), address(sums), *scores.shape,
        epsilon, torch.get_num_threads(),
    )  # fmt: skip
    return sums


def codes(
    scores: Tensor, f: Tensor, epsilon: float, hard: bool, normalized: bool, out: Tensor
) -> None:
    """Write the codes [A, N, K] that f stands for; `out` may be `scores` itself."""
    cpu_kernels(out.dtype).sinkhorn_codes(
        *typed_address(scores), address(f), address(out), *scores.shape, epsilon, hard, normalized,
        torch.get_num_threads(),
    )  # fmt: skip


def _per_prototype(scores: Tensor) -> Tensor:
    num_problems, _, num_prototypes = scores.shape
    return torch.empty(num_problems, num_prototypes, dtype=accumulate_dtype(scores))
