"""Sinkhorn codes in the log domain: balanced soft assignment of samples to prototypes."""

import math

import torch
from torch import Tensor

from swav_kernels.distributed import Group, all_reduce


def potentials(
    scores: Tensor, iterations: int, epsilon: float, weights: Tensor | None = None,
    marginals: Tensor | None = None, shift: float | None = None, group: Group = None,
) -> Tensor:  # fmt: skip
    """Return f = log u [A, K]: T times u_k = r_k / sum_b w_b a_b E_bk, a_b = 1 / sum_k u_k E_bk."""
    logits = scores / epsilon
    log_w = 0 if weights is None else weights.log().unsqueeze(-1)
    log_r = scores.new_zeros(scores.shape[2]) if marginals is None else marginals.log()
    column_lse = _logsumexp_over_samples(logits + log_w, shift, group)
    f = torch.where(
        column_lse == -math.inf, -math.inf, log_r - column_lse
    )  # an empty column is dead
    f = torch.where(f.isnan().any(-1, keepdim=True), math.nan, f)  # one NaN poisons its problem
    for _ in range(iterations - 1):
        p = codes(logits, f, 1.0, hard=False) * (1 if weights is None else weights.unsqueeze(-1))
        masked_row = (logits + f.unsqueeze(-2)).eq(-math.inf).all(-1, keepdim=True)
        sums = all_reduce(torch.where(masked_row, 0, p).sum(1), "sum", group)
        tiny = torch.finfo(sums.dtype).tiny
        step = log_r - sums.clamp_min(tiny).log() + level(f, sums, log_r)
        f = torch.where(f == -math.inf, f, f + step)
        f = torch.where(f.isnan().any(-1, keepdim=True), math.nan, f)
    return f


def level(f: Tensor, sums: Tensor, log_r: Tensor) -> Tensor:
    """log(total sum / total r) [A, 1], by which all of f would else move in every iteration."""
    total, total_r = (
        torch.where(f > -math.inf, x, 0).sum(-1, keepdim=True) for x in (sums, log_r.exp())
    )
    return (total / total_r).log().nan_to_num(nan=0, posinf=0, neginf=0)


def unbalanced_potentials(scores: Tensor, epsilon: float, group: Group = None) -> Tensor:
    """T = 0: the constant f [A, 1] for which exp(s / epsilon + f) = N E / sum E."""
    column_lse = _logsumexp_over_samples(scores / epsilon, None, group)
    num_rows = all_reduce(scores.new_full((1,), scores.shape[1]), "sum", group)
    return (num_rows.log() - column_lse.logsumexp(-1)).unsqueeze(-1)


def _logsumexp_over_samples(logits: Tensor, shift: float | None, group: Group) -> Tensor:
    """[A, N, K] -> [A, K], over the rows of all ranks; NaN or +inf in a column gives NaN."""
    logits = torch.nn.functional.pad(
        logits, (0, 0, 0, 1), value=-math.inf
    )  # so that N = 0 is no case
    top = logits.amax(1).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    top = all_reduce(top, "max", group) if shift is None else torch.full_like(top, shift)
    finite_top = torch.where(top == -math.inf, 0, top)
    sums = all_reduce((logits - finite_top.unsqueeze(1)).exp().sum(1), "sum", group)
    return torch.where(sums.isinf(), math.nan, sums.log() + finite_top)


def codes(scores: Tensor, f: Tensor, epsilon: float, hard: bool) -> Tensor:
    """softmax_k(s / epsilon + f) [A, N, K], or the one-hot of its maximum."""
    logits = scores / epsilon + f.unsqueeze(-2)
    soft = torch.softmax(logits, -1)
    soft = soft / soft.sum(-1, keepdim=True)  # torch leaves float32 rows up to 3e-6 off 1
    if not hard:
        return soft
    columns = torch.arange(logits.shape[-1], device=logits.device)
    one_hot = (columns == logits.argmax(-1, keepdim=True)).to(soft.dtype)
    return torch.where(soft.isnan(), soft, one_hot)
