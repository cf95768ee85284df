"""Sinkhorn over scores by the compiled module, on the CPU or the GPU that they live on."""

import torch
from torch import Tensor

from swav_kernels.checks import accumulate_dtype
from swav_kernels.native import DTYPES, address, cpu_kernels, cuda_kernels, load, typed_address


def sinkhorn(scores: Tensor, epsilon: float, iterations: int, out: Tensor) -> None:
    """Write soft codes [A, N, K], without weights; `out` may be `scores` itself."""
    _run("sinkhorn", out.dtype, scores, address(out), *scores.shape, epsilon, iterations)


def potentials(
    scores: Tensor,
    sample_weights: Tensor | None,
    log_prototype_weights: Tensor | None,
    epsilon: float,
    iterations: int,
    precision: str,
) -> Tensor:
    """[A, N, K] -> f [A, K] after all iterations; "bfloat16" rounds what is kept between them."""
    f = _per_prototype(scores)
    if scores.is_cuda:
        log_prototype_weights = level_weights(scores, sample_weights, log_prototype_weights)
    _run(
        "sinkhorn_potentials", f.dtype, scores, address(sample_weights),
        address(log_prototype_weights), address(f), *scores.shape, epsilon, iterations,
        precision == "bfloat16",
    )  # fmt: skip
    return f


def level_weights(
    scores: Tensor, sample_weights: Tensor | None, log_prototype_weights: Tensor | None
) -> Tensor | None:
    """Log r [K], moved so that all r add up to what all sample weights of a problem do, on average.

    The CUDA kernels take that for granted of given weights; otherwise f would drift in every
    iteration. None where neither are given: the sizes tell the kernels.
    """
    if sample_weights is None and log_prototype_weights is None:
        return None
    num_problems, num_samples, num_prototypes = scores.shape
    if sample_weights is None:
        total = torch.full((), num_samples, dtype=accumulate_dtype(scores), device=scores.device)
    else:
        total = sample_weights.sum() / num_problems
    log_r = log_prototype_weights
    if log_r is None:
        log_r = total.new_zeros(num_prototypes)
    level = total.log() - log_r.logsumexp(0)
    return log_r + torch.where(level.isfinite(), level, 0.0)


def column_stats(
    scores: Tensor, sample_weights: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """First sweep: maximum and sum over the samples, [A, K] each."""
    column_max, sums = _per_prototype(scores), _per_prototype(scores)
    _run(
        "sinkhorn_column_stats", sums.dtype, scores, address(sample_weights), address(column_max),
        address(sums), *scores.shape, epsilon,
    )  # fmt: skip
    return column_max, sums


def column_sums(scores: Tensor, f: Tensor, sample_weights: Tensor | None, epsilon: float) -> Tensor:
    """Later sweeps: sums [A, K] of the codes that f stands for."""
    sums = _per_prototype(scores)
    _run(
        "sinkhorn_column_sums", sums.dtype, scores, address(f), address(sample_weights),
        address(sums), *scores.shape, epsilon,
    )  # fmt: skip
    return sums


def codes(
    scores: Tensor, f: Tensor, epsilon: float, hard: bool, normalized: bool, out: Tensor
) -> None:
    """Write the codes [A, N, K] that f stands for; `out` may be `scores` itself."""
    _run(
        "sinkhorn_codes", out.dtype, scores, address(f), address(out), *scores.shape, epsilon,
        hard, normalized,
    )  # fmt: skip


def _per_prototype(scores: Tensor) -> Tensor:
    num_problems, _, num_prototypes = scores.shape
    return torch.empty(
        num_problems, num_prototypes, dtype=accumulate_dtype(scores), device=scores.device
    )


def _run(kernel: str, acc: torch.dtype, scores: Tensor, *arguments: float) -> None:
    """Call a kernel where the scores live, with the arguments that belong to that place."""
    if not scores.is_cuda:
        getattr(cpu_kernels(acc), kernel)(
            *typed_address(scores), *arguments, torch.get_num_threads()
        )
        return
    device = scores.get_device()
    size = load().cuda.sinkhorn_workspace(DTYPES[scores.dtype], *scores.shape, device)
    workspace = torch.empty(size, dtype=torch.uint8, device=scores.device)
    getattr(cuda_kernels(acc), kernel)(
        *typed_address(scores), *arguments, address(workspace), device,
        torch.cuda.current_stream(device).cuda_stream,
    )  # fmt: skip
