"""The best that plain PyTorch offers: the identities that our kernels use, in torch's own ops.

Linear domain throughout: cosines over epsilon or temperature reach 20, which float32 holds. The
gradients are written out, so nothing is saved for a backward pass.
"""

import torch
from torch import Tensor

from benchmarks.case import ASSIGN, EPSILON, ITERATIONS, TEMPERATURE


def balance(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, K] -> E, u [K] and a [N] after T iterations; codes are a E u."""
    e = (scores / EPSILON).exp_()
    u = 1 / e.sum(0)
    a = 1 / (e @ u)
    for _ in range(ITERATIONS - 1):
        u = 1 / (a @ e)
        a = 1 / (e @ u)
    return e, u, a


def sinkhorn(scores: Tensor) -> Tensor:
    """[N, K] -> codes [N, K]: one exponential a score, then matrix-vector products."""
    e, u, a = balance(scores)
    return e.mul_(u).mul_(a.unsqueeze(1))


def swapped_cross_entropy(scores: Tensor, codes: Tensor, gradient: bool) -> tuple[Tensor, ...]:
    """[V, B, K], [A, B, K] -> loss, d_scores: one log-sum-exp a crop, codes summed over pairs."""
    num_crops, num_samples, _ = scores.shape
    weight = 1 / (len(ASSIGN) * (num_crops - 1) * num_samples)
    p = (scores / TEMPERATURE).exp_()
    sums = p.sum(2)
    loss, total = sums.new_zeros(()), codes.sum(0)
    row_sums = codes.sum(2)
    for crop in range(num_crops):
        target, target_sums = total, row_sums.sum(0)
        if crop in ASSIGN:
            own = ASSIGN.index(crop)
            target, target_sums = total - codes[own], target_sums - row_sums[own]
        loss += target_sums @ sums[crop].log()
        loss -= target.flatten() @ scores[crop].flatten() / TEMPERATURE
        if gradient:
            p[crop].mul_((target_sums / sums[crop]).unsqueeze(1)).sub_(target)
    return (weight * loss, p.mul_(weight / TEMPERATURE)) if gradient else (weight * loss,)


def swav_loss(features: Tensor, prototypes: Tensor, gradient: bool) -> tuple[Tensor, ...]:
    """[V, B, D], [K, D] -> loss, d_features, d_prototypes.

    V log-sum-exps in place of one for each pair; codes enter through their barycentres m = q c.
    """
    num_crops, num_samples, dim = features.shape
    weight = 1 / (len(ASSIGN) * (num_crops - 1) * num_samples)
    z = features.flatten(0, 1)
    scores = z @ prototypes.t()
    all_crops = features.sum(0)
    barycentres, others, code_gradient = [], [], 0
    for crop in ASSIGN:
        q = sinkhorn(scores.view(num_crops, num_samples, -1)[crop])
        barycentres.append(q @ prototypes)
        others.append(all_crops - features[crop])  # sum of z over v != i, as in its gradient
        if gradient:
            code_gradient = code_gradient + q.t() @ others[-1]
    p = scores.div_(TEMPERATURE).exp_()
    sums = p.sum(1)
    counts = features.new_full((num_crops, 1), float(len(ASSIGN)))
    counts[list(ASSIGN)] -= 1
    counts = counts.expand(num_crops, num_samples).flatten()  # codes that a row must predict
    similarity = sum((m * y).sum() for m, y in zip(barycentres, others, strict=True))
    loss = weight * (counts @ sums.log() - similarity / TEMPERATURE)
    if not gradient:
        return (loss,)
    step, share = weight / TEMPERATURE, counts / sums
    d_features = (p @ prototypes).mul_(share.unsqueeze(1)).view(num_crops, num_samples, dim)
    d_features -= sum(barycentres)
    for crop, m in zip(ASSIGN, barycentres, strict=True):
        d_features[crop] += m
    d_prototypes = p.t() @ (z * share.unsqueeze(1)) - code_gradient
    return loss, d_features.mul_(step), d_prototypes.mul_(step)


PIECE = 2**20  # numbers of a piece of scores: 4 MiB stay in the cache


def prototype_distillation_loss(
    features: Tensor,
    prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    gradient: bool,
) -> tuple[Tensor, ...]:
    """[N, D], [K, D], [N, E], [K, E] -> loss, d_features, d_prototypes.

    The teacher's exponentials are kept in full, the student's scores are a few rows at a time.
    """
    e, u, a = balance(teacher_features @ teacher_prototypes.t())
    weight = 1 / (len(features) * TEMPERATURE)
    loss = features.new_zeros(())
    d_features, d_prototypes = torch.empty_like(features), torch.zeros_like(prototypes)
    step = max(1, PIECE // len(prototypes))
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        q = e[rows].mul_(u).mul_(a[rows].unsqueeze(1))
        s = features[rows] @ prototypes.t()
        similarity = q.flatten() @ s.flatten()
        p = s.div_(TEMPERATURE).exp_()
        sums = p.sum(1)
        loss += weight * (TEMPERATURE * sums.log().sum() - similarity)
        if gradient:
            d_scores = p.mul_((weight / sums).unsqueeze(1)).sub_(q, alpha=weight)
            torch.mm(d_scores, prototypes, out=d_features[rows])
            d_prototypes.addmm_(d_scores.t(), features[rows])
    return (loss, d_features, d_prototypes) if gradient else (loss,)
