"""The streaming loss by torch's scaled_dot_product_attention: no sample keeps anything of size K.

Attention returns averages and no log-sum-exp. One more key, of logit l and the only one with a
value, brings it back: its weight is w = exp(l) / (exp(l) + sum exp(logits)), so
l + log(1 - w) - log w is the log-sum-exp, and autograd through it gives p c and p^T z.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.case import ASSIGN, EPSILON, ITERATIONS, TEMPERATURE

ALIGNED = 8  # the fused kernels want rows of a bias in multiples of it


def swav_loss(features: Tensor, prototypes: Tensor) -> Tensor:
    """[V, B, D], [K, D] -> loss, differentiable in both."""
    num_crops, num_samples, _ = features.shape
    others = features.sum(0) - features[list(ASSIGN)]  # [A, B, D], sum of z over v != i
    barycentres = []
    for crop in ASSIGN:
        z, c = features[crop].detach(), prototypes.detach()
        f = potentials(z, c)
        # codes carry no gradient: only the values do
        barycentres.append(_attend(z, c, prototypes, 1 / EPSILON, f))
    counts = features.new_full((num_crops, 1), float(len(ASSIGN)))
    counts[list(ASSIGN)] -= 1
    lse = _log_sum_exp(features.flatten(0, 1), prototypes, 1 / TEMPERATURE, None)
    loss = (counts * lse.view(num_crops, num_samples)).sum()
    loss = loss - (torch.stack(barycentres) * others).sum() / TEMPERATURE
    return loss / (len(ASSIGN) * (num_crops - 1) * num_samples)


def potentials(features: Tensor, prototypes: Tensor) -> Tensor:
    """[N, D], [K, D] -> f [K]: the Sinkhorn as alternating log-sum-exps."""
    f = -_log_sum_exp(prototypes, features, 1 / EPSILON, None)
    for _ in range(ITERATIONS - 1):
        g = -_log_sum_exp(features, prototypes, 1 / EPSILON, f)
        f = -_log_sum_exp(prototypes, features, 1 / EPSILON, g)
    return f


def _log_sum_exp(queries: Tensor, keys: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """[N, D], [K, D] -> log sum_k exp(scale q k + bias_k) [N]."""
    num_keys = len(keys)
    bias = keys.new_zeros(num_keys) if bias is None else bias
    level = bias.mean() + math.log(num_keys)  # near the result, where neither logarithm cancels
    extra = 1 + -(num_keys + 1) % ALIGNED
    bias = pad(bias, (0, extra), value=-torch.inf)
    bias[num_keys] = level
    values = pad(torch.zeros_like(keys), (0, 0, 0, extra))
    values[num_keys, 0] = 1.0
    weight = _attend(queries, pad(keys, (0, 0, 0, extra)), values, scale, bias)[:, 0]
    return level + torch.log1p(-weight) - weight.log()


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor) -> Tensor:
    """softmax(scale q k + bias) v; one batch, one head."""
    q, k, v = (x[None, None] for x in (queries, keys, values))
    mask = bias.expand(1, 1, len(queries), len(keys))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0, 0]
