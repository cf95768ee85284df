"""Telemetry of a SwAV step: what the codes look like, from sums the kernels already hold."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swav_kernels.distributed import Group, all_reduce

KEYS = (
    "loss_minus_log_k",
    "code_entropy",
    "mean_code_entropy",
    "usage_entropy",
    "prototypes_in_use",
    "mean_max_code",
    "marginal_residual",
    "view_agreement",
)


class CodeStatistics(NamedTuple):
    """Per-row and per-prototype sums over the batch rows of the A assign crops."""

    nearest: Tensor  # [A, B] int64: argmax_k of the scores, lowest index on ties
    code_entropy: Tensor  # [A, B]: -sum_k q ln q
    max_code: Tensor  # [A, B]: max_k q
    code_sums: Tensor  # [A, K]: sum_b q


def summarise(
    rows: CodeStatistics, loss: Tensor, prototype_weights: Tensor | None, group: Group
) -> dict[str, Tensor]:
    """Turn sums into the `stats` of `swav_loss`: no host synchronisation, one collective.

    Entropies are divided by ln K, so 1 is uniform (and 1 by definition for K = 1).
    """
    num_crops, num_samples = rows.nearest.shape
    num_prototypes = rows.code_sums.shape[1]
    acc = rows.code_sums.dtype
    usage = torch.zeros(num_prototypes, dtype=acc, device=loss.device)
    nearest = rows.nearest.reshape(-1)
    usage.scatter_add_(0, nearest, torch.ones_like(nearest, dtype=acc))
    pairs = [(i, j) for i in range(num_crops) for j in range(i)]
    agreeing = sum(
        ((rows.nearest[i] == rows.nearest[j]).sum() for i, j in pairs),
        torch.zeros_like(nearest.sum()),
    )
    scalars = torch.stack(
        [
            torch.full_like(loss.detach(), num_samples),
            loss.detach() * num_samples,
            rows.code_entropy.sum(),
            rows.max_code.sum(),
            agreeing.to(acc),
        ]
    )
    # one message [2K + 5], whatever the data
    total = all_reduce(torch.cat([scalars, usage, rows.code_sums.sum(0)]), "sum", group)
    samples, loss_sum, entropy_sum, max_sum, agreeing_sum = total[:5].unbind()
    usage, code_sums = total[5:].view(2, num_prototypes)
    coded_rows = samples * num_crops
    mean_code = code_sums / coded_rows
    if prototype_weights is None:
        target = torch.full_like(mean_code, 1 / num_prototypes)
    else:
        target = (prototype_weights / prototype_weights.sum()).to(acc)
    residual = torch.where(target > 0, mean_code / target - 1, mean_code)
    no_pair = torch.full_like(samples, math.nan)
    return {
        "loss_minus_log_k": loss_sum / samples - math.log(num_prototypes),
        "code_entropy": _over_log_k(entropy_sum / coded_rows, num_prototypes),
        "mean_code_entropy": _entropy(mean_code),
        "usage_entropy": _entropy(usage / coded_rows),
        "prototypes_in_use": (usage > 0).sum(),
        "mean_max_code": max_sum / coded_rows,
        "marginal_residual": residual.abs().amax(),
        "view_agreement": agreeing_sum / (samples * len(pairs)) if pairs else no_pair,
    }


def packed(stats: dict[str, Tensor]) -> Tensor:
    """The stats in one tensor, as an op of a graph returns them; the count is below 2^24."""
    return torch.stack([stats[key].to(stats[KEYS[0]].dtype) for key in KEYS])


def unpacked(values: Tensor) -> dict[str, Tensor]:
    """The stats of `packed`, each in memory of its own."""
    stats = dict(zip(KEYS, (x.clone() for x in values.unbind()), strict=True))
    return {**stats, "prototypes_in_use": stats["prototypes_in_use"].to(torch.int64)}


def _entropy(distribution: Tensor) -> Tensor:
    return _over_log_k(torch.special.entr(distribution).sum(), distribution.numel())


def _over_log_k(entropy: Tensor, num_prototypes: int) -> Tensor:
    return entropy / math.log(num_prototypes) if num_prototypes > 1 else entropy * 0 + 1
