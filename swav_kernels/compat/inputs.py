"""What the adapters share: checks under their own names, and codes in the caller's dtype."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.distributed import Group
from swav_kernels.ops.sinkhorn import sinkhorn

_R = TypeVar("_R")


@dataclass(frozen=True)
class Names:
    """An adapter, and what it calls the arguments of the op beneath: for errors."""

    op: str
    scores: str = "scores"
    iterations: str = "iterations"
    epsilon: str = "epsilon"
    assign: str = "assign"

    def call(self, op: Callable[..., _R], *args: object, **keywords: object) -> _R:
        """Call an op; its errors come under the adapter's names."""
        try:
            return op(*args, **keywords)
        except (TypeError, ValueError) as error:
            own, _, message = str(error).partition(": ")
            if own != op.__name__:
                raise
            for ours in ("scores", "iterations", "epsilon", "assign"):
                message = re.sub(rf"\b{ours}\b", getattr(self, ours), message)
            raise type(error)(f"{self.op}: {message}") from None


def check_scores(op: str, argument: str, value: object, *layouts: str) -> Tensor:
    """Require a floating tensor of one of the layouts whose numbers torch can read, with K >= 1."""
    tensor = checks.check_tensor(op, argument, value, *layouts)
    if tensor.device.type != "meta":
        checks.check_readable(op, "auto", **{argument: tensor})
    prototypes = 0 if layouts[0].startswith("[K") else -1
    checks.check_not_empty(op, argument, tensor.shape[prototypes], "K")
    return tensor


def stack(op: str, argument: str, views: object, like: Tensor | None = None) -> list[Tensor]:
    """Require a list of scores [B, K], all of one size: that of `like` or of the first."""
    if not isinstance(views, Sequence | Tensor) or isinstance(views, str):
        raise TypeError(
            f"{op}: {argument} must be a list of tensors [B, K], got {type(views).__name__}; "
            "pass [scores] for one"
        )
    tensors: list[Tensor] = []
    for view in views:
        tensor = check_scores(op, argument, view, "[B, K]")
        first = tensor if like is None else like
        checks.check_shape(op, argument, tensor, first.shape, "[B, K]")
        checks.check_same_device(op, **{f"the first of {argument}": first, argument: tensor})
        like = first
        tensors.append(tensor)
    return tensors


def check_epsilon(op: str, argument: str, value: object) -> float:
    """Require what may be added to a denominator."""
    number = checks.check_number(op, argument, value)
    if not 0 <= number < math.inf:
        raise ValueError(
            f"{op}: {argument} must be at least 0 and finite, got {number:g}; 1e-8 is usual"
        )
    return number


def flag(op: str, argument: str, value: object) -> bool:
    """Require True or False, or a tensor that is one of them: code bases pass those."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return bool(value)
    checks.check_flags(op, **{argument: value})
    return bool(value)


def codes_of_scores(
    names: Names,
    scores: Tensor,
    iterations: int,
    epsilon: float,
    *,
    gather_distributed: bool,
    group: Group = None,
) -> Tensor:
    """Codes of scores [N, K] or [A, N, K], in the dtype that `exp(scores)` has here."""
    codes = names.call(sinkhorn, scores, iterations, epsilon, gather_distributed, group=group)
    return codes.to(dtype_of_exp(scores))


def dtype_of_exp(scores: Tensor) -> torch.dtype:
    """Half outside autocast, float32 inside: callers mix the codes with tensors of that dtype."""
    return scores.detach().new_empty(0).exp().dtype


def codes_of_exponentials(
    names: Names,
    exponentials: Tensor,
    iterations: int,
    *,
    gather_distributed: bool,
    layout: str = "[K, N]",
    group: Group = None,
    hard: bool = False,
    prototype_weights: Tensor | None = None,
) -> Tensor:
    """Codes [N, K] of E, which is exp(scores / epsilon) up to one factor for all rows.

    A factor per prototype would cancel too, a factor per sample would not. An entry of 0 gives
    code 0, an infinite one makes all codes NaN. No iterations leave E with its rows normalised.

    Returns:
        float32, or float64 for float64.
    """
    check_scores(names.op, names.scores, exponentials, layout)
    iterations = checks.check_iterations(names.op, iterations, 0, names.iterations)
    rows = exponentials.t() if layout == "[K, N]" else exponentials
    dtype = torch.float64 if exponentials.dtype == torch.float64 else torch.float32
    scores = rows.detach().to(dtype).log().contiguous()  # 0 becomes -inf: a mask
    if iterations == 0:
        return sinkhorn(scores, 0, 1.0, hard=True) if hard else torch.softmax(scores, -1)
    return names.call(
        sinkhorn, scores, iterations, 1.0, gather_distributed, group=group, hard=hard,
        prototype_weights=prototype_weights, out=scores,
    )  # fmt: skip
