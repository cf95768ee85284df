"""What people run today, written from the formulas in eager PyTorch.

Rows are samples here as everywhere in the project: the paper's Q is the transpose, and the
launches and passes over memory are the same either way.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.case import ASSIGN, EPSILON, ITERATIONS, TEMPERATURE, Call


def sinkhorn(scores: Tensor, iterations: int = ITERATIONS, epsilon: float = EPSILON) -> Tensor:
    """Return codes [N, K] by T rounds of in-place divisions (Caron et al. 2020, section 3.1)."""
    num_samples, num_prototypes = scores.shape
    codes = torch.exp(scores / epsilon)
    codes /= codes.sum()
    for _ in range(iterations):
        codes /= codes.sum(0, keepdim=True)  # every prototype carries 1 / K
        codes /= num_prototypes
        codes /= codes.sum(1, keepdim=True)  # every sample carries 1 / N
        codes /= num_samples
    codes *= num_samples  # rows sum to 1
    return codes


def swapped_cross_entropy(
    scores: Tensor,
    codes: Tensor,
    temperature: float = TEMPERATURE,
    assign: Sequence[int] = ASSIGN,
) -> Tensor:
    """Return the loss of scores [V, B, K] and codes [A, B, K]: one log-softmax a crop pair.

    As there, a crop's scores are cut out anew for every pair, which the gradient pays for.
    """
    num_crops = scores.shape[0]
    loss = scores.new_zeros(())
    for q, assign_crop in zip(codes, assign, strict=True):
        for crop in range(num_crops):
            if crop != assign_crop:
                log_p = torch.log_softmax(scores[crop] / temperature, dim=1)
                loss = loss - (q * log_p).sum(1).mean() / (num_crops - 1)
    return loss / len(assign)


def swav_loss(
    features: Tensor,
    prototypes: Tensor,
    temperature: float = TEMPERATURE,
    epsilon: float = EPSILON,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Return the loss of features [V, B, D], prototypes [K, D]: scores and codes kept in full."""
    return _loss_of_scores(features @ prototypes.t(), temperature, epsilon, iterations)


def prototype_distillation_loss(
    features: Tensor, prototypes: Tensor, teacher_features: Tensor, teacher_prototypes: Tensor
) -> Tensor:
    """Return the loss of a student's rows against the Sinkhorn codes of a teacher's, kept in full.

    As in DINOv2: codes of the teacher's scores, times the log-softmax of the student's.
    """
    with torch.no_grad():
        codes = sinkhorn(teacher_features @ teacher_prototypes.t())
    log_p = torch.log_softmax(features @ prototypes.t() / TEMPERATURE, dim=1)
    return -(codes * log_p).sum(1).mean()


def swav_loss_bf16(
    features: Tensor,
    prototypes: Tensor,
    temperature: float = TEMPERATURE,
    epsilon: float = EPSILON,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Return the same as autocast computes it: products in bfloat16, all else in float32."""
    scores = features.bfloat16() @ prototypes.bfloat16().t()
    return _loss_of_scores(scores.float(), temperature, epsilon, iterations)


def _loss_of_scores(scores: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
    with torch.no_grad():
        codes = torch.stack([sinkhorn(scores[crop], iterations, epsilon) for crop in ASSIGN])
    return swapped_cross_entropy(scores, codes, temperature)


def with_gradients(loss: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: bool) -> Call:
    """Return a call that gives the loss, and its gradient for each input if asked for."""
    leaves = [x.detach().requires_grad_(gradient) for x in inputs]

    def call() -> tuple[Tensor, ...]:
        value = loss(*leaves)
        return (value.detach(), *(torch.autograd.grad(value, leaves) if gradient else ()))

    return call
