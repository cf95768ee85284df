"""The swapped cross-entropy: every crop predicts the codes of the other assign crops."""

import torch
from torch import Tensor


def swapped_cross_entropy(
    scores: Tensor, codes: Tensor, assign: tuple[int, ...], temperature: float
) -> Tensor:
    """Mean over crop pairs and samples of -sum_k q log softmax(s / temperature)."""
    num_crops, num_samples, _ = scores.shape  # [V, B, K]; codes [A, B, K]
    log_p = torch.log_softmax(scores / temperature, dim=-1)
    loss = log_p.sum() * 0 if num_samples == 0 else log_p.new_zeros(())
    for q, assign_crop in zip(codes, assign, strict=True):
        for crop in range(num_crops):
            if crop != assign_crop:
                # a code of 0 on a masked score is 0, not 0 * inf
                loss = loss - (q * torch.where(q == 0, 0, log_p[crop])).sum()
    return loss / (len(assign) * (num_crops - 1) * max(num_samples, 1))
