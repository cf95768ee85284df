"""The cross-entropy of a student's scores with a teacher's codes, row by row."""

import torch
from torch import Tensor


def prototype_cross_entropy(
    scores: Tensor, codes: Tensor, temperature: float, weights: Tensor | None
) -> Tensor:
    """Mean over the rows of -w sum_k q log softmax(s / temperature); scores, codes [N, K]."""
    if weights is not None:
        codes = codes * weights.unsqueeze(1)
    logits = (scores / temperature).contiguous()  # the same sums in any layout
    # a code of 0 on a masked score is 0, not 0 * inf
    dots = torch.where(codes == 0, 0, codes * logits).sum(-1)
    rows = codes.sum(-1) * torch.logsumexp(logits, -1) - dots
    return rows.sum() / max(len(rows), 1)
