"""The cross-entropy of a student's scores with a teacher's codes, row by row."""

import torch
from torch import Tensor


def prototype_cross_entropy(
    scores: Tensor, codes: Tensor, temperature: float, weights: Tensor | None
) -> Tensor:
    """Mean over the rows of -w sum_k q log softmax(s / temperature); scores, codes [N, K]."""
    log_p = torch.log_softmax(scores / temperature, dim=-1)
    # a code of 0 on a masked score is 0, not 0 * inf
    rows = -(codes * torch.where(codes == 0, 0, log_p)).sum(-1)
    if weights is not None:
        rows = rows * weights
    return rows.sum() / max(len(rows), 1)
