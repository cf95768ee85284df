"""The Sinkhorn of CAPI: `sinkhorn_knopp` of its `model.py`, a script's: import this one over it."""

import math

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.checks import accumulate_dtype
from swav_kernels.compat.inputs import check_epsilon, check_scores
from swav_kernels.distributed import Group, all_reduce, resolve_group
from swav_kernels.ops.sinkhorn import sinkhorn

LARGEST_EXPONENT = 50.0  # of CAPI's exponentials, except in half: e^50 makes its eps small


@torch.no_grad()
def sinkhorn_knopp(
    M: Tensor,
    n_iterations: int,
    eps: float = 1e-8,
    *,
    group: Group = None,
    strict: bool = False,
) -> Tensor:
    """Codes of logits, in place: `sinkhorn` with epsilon 1 of each problem [N, K].

    Args:
        M: [..., N, K], scores divided by the temperature already. Overwritten, as there.
        n_iterations: T; 0 returns the shifted exponentials.
        eps: what `strict` adds to the denominators; the exact codes need none.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised, as there.
        strict: add eps to the denominators as CAPI does; rows then sum to less than 1, and a row
            that is far below all maxima gets zeros.

    Returns:
        M, which now holds the codes.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> sinkhorn_knopp(torch.eye(4) / 0.05, 3).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    op = "sinkhorn_knopp"
    check_scores(op, "M", M, "[..., N, K]")
    if M.dim() < 2:
        raise ValueError(
            f"{op}: M must have shape [..., N, K], got {list(M.shape)}; use .unsqueeze(0)"
        )
    n_iterations = checks.check_iterations(op, n_iterations, 0, "n_iterations")
    eps = check_epsilon(op, "eps", eps)
    checks.check_flags(op, strict=strict)
    group = resolve_group(op, group, gather_distributed=group is None)
    logits = M.detach()
    if strict or n_iterations == 0:
        largest = 0.0 if M.dtype == torch.float16 else LARGEST_EXPONENT
        return M.copy_(stabilised_sinkhorn(logits, n_iterations, eps, largest, group))
    problems = logits if logits.dim() == 2 else logits.flatten(0, -3)
    if logits.is_contiguous() and logits.dtype in (torch.float32, torch.float64):
        sinkhorn(problems, n_iterations, 1.0, group=group, out=problems)
        return M
    return M.copy_(sinkhorn(problems, n_iterations, 1.0, group=group).view(M.shape))


@torch.no_grad()
def stabilised_sinkhorn(
    logits: Tensor, iterations: int, eps: float, largest_exponent: float, group: Group
) -> Tensor:
    """[..., N, K]: the linear-domain form that adds eps to every denominator; sums in float32."""
    logits = logits.to(accumulate_dtype(logits))
    if logits.shape[-2]:
        top = logits.amax(-2, keepdim=True)
    else:  # a rank without rows
        top = logits.new_full((*logits.shape[:-2], 1, logits.shape[-1]), -math.inf)
    top = all_reduce(top, "max", group)
    codes = (logits - top + largest_exponent).exp()
    for _ in range(iterations):
        codes = codes / (all_reduce(codes.sum(-2, keepdim=True), "sum", group) + eps)
        codes = codes / (codes.sum(-1, keepdim=True) + eps)
    return codes
