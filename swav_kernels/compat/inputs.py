"""What the adapters share: codes from scores or from exponentials, in the caller's dtype."""

import torch
from torch import Tensor

from swav_kernels.distributed import Group
from swav_kernels.ops.sinkhorn import sinkhorn


def codes_of_scores(
    scores: Tensor,
    iterations: int,
    epsilon: float,
    *,
    gather_distributed: bool,
    group: Group = None,
) -> Tensor:
    """Codes of scores [N, K] or [A, N, K], in the dtype that `exp(scores)` has here."""
    codes = sinkhorn(scores, iterations, epsilon, gather_distributed, group=group)
    return codes.to(dtype_of_exp(scores))


def dtype_of_exp(scores: Tensor) -> torch.dtype:
    """Half outside autocast, float32 inside: callers mix the codes with tensors of that dtype."""
    return scores.detach().new_empty(0).exp().dtype


def codes_of_exponentials(
    exponentials: Tensor,
    iterations: int,
    *,
    gather_distributed: bool,
    group: Group = None,
    hard: bool = False,
    prototype_weights: Tensor | None = None,
) -> Tensor:
    """Codes [N, K] of E [N, K], which is exp(scores / epsilon) up to one factor for all rows.

    A factor per prototype would cancel too, a factor per sample would not. An entry of 0 gives
    code 0, an infinite one makes all codes NaN. No iterations leave E with its rows normalised.

    Returns:
        float32, or float64 for float64.
    """
    dtype = torch.float64 if exponentials.dtype == torch.float64 else torch.float32
    scores = exponentials.detach().to(dtype).log().contiguous()  # 0 becomes -inf: a mask
    if iterations == 0:
        return sinkhorn(scores, 0, 1.0, hard=True) if hard else torch.softmax(scores, -1)
    return sinkhorn(
        scores, iterations, 1.0, gather_distributed, group=group, hard=hard,
        prototype_weights=prototype_weights, out=scores,
    )  # fmt: skip
