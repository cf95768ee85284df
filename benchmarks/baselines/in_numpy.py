"""The official formulas in NumPy, on the memory of the torch tensors; for the CPU."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.case import ASSIGN, EPSILON, ITERATIONS, TEMPERATURE

Array = npt.NDArray[np.float32]


def prototype_scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """[N, D], [K, D] -> scores [N, K]."""
    return torch.from_numpy(features.numpy() @ prototypes.numpy().T)


def sinkhorn(scores: Tensor) -> Tensor:
    """[N, K] -> codes [N, K]."""
    return torch.from_numpy(_sinkhorn(scores.numpy()))


def swapped_cross_entropy(scores: Tensor, codes: Tensor, gradient: bool) -> tuple[Tensor, ...]:
    """[V, B, K], [A, B, K] -> loss, d_scores."""
    loss, d_scores = _loss_of_scores(scores.numpy(), codes.numpy())
    return _tensors(loss, *((d_scores,) if gradient else ()))


def swav_loss(features: Tensor, prototypes: Tensor, gradient: bool) -> tuple[Tensor, ...]:
    """[V, B, D], [K, D] -> loss, d_features, d_prototypes."""
    z, c = features.numpy(), prototypes.numpy()
    scores = z @ c.T
    loss, d_scores = _loss_of_scores(scores, np.stack([_sinkhorn(scores[crop]) for crop in ASSIGN]))
    if not gradient:
        return _tensors(loss)
    flat = d_scores.reshape(-1, len(c))
    return _tensors(loss, d_scores @ c, flat.T @ z.reshape(-1, c.shape[1]))


def _sinkhorn(scores: Array) -> Array:
    codes = np.exp(scores / np.float32(EPSILON))
    codes /= codes.sum()
    num_samples, num_prototypes = codes.shape
    for _ in range(ITERATIONS):
        codes /= codes.sum(0, keepdims=True)
        codes /= num_prototypes
        codes /= codes.sum(1, keepdims=True)
        codes /= num_samples
    codes *= num_samples
    return codes


def _loss_of_scores(scores: Array, codes: Array) -> tuple[np.float32, Array]:
    num_crops, num_samples, _ = scores.shape
    loss, d_scores = np.float32(0), np.zeros_like(scores)
    for q, assign_crop in zip(codes, ASSIGN, strict=True):
        for crop in range(num_crops):
            if crop != assign_crop:
                logits = scores[crop] / np.float32(TEMPERATURE)
                logits -= logits.max(1, keepdims=True)
                p = np.exp(logits)
                sums = p.sum(1, keepdims=True)
                loss -= (q * (logits - np.log(sums))).sum()
                d_scores[crop] += p / sums * q.sum(1, keepdims=True) - q
    weight = np.float32(1 / (len(ASSIGN) * (num_crops - 1) * num_samples))
    d_scores *= weight / np.float32(TEMPERATURE)
    return weight * loss, d_scores


def _tensors(loss: np.float32, *arrays: Array) -> tuple[Tensor, ...]:
    return (torch.tensor(loss), *map(torch.from_numpy, arrays))
