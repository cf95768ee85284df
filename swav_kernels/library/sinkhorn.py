"""`torch.ops.swav_kernels.sinkhorn` and `.sinkhorn_potentials`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swav_kernels.distributed import named_group
from swav_kernels.library.define import batch_of, define, one_after_the_other
from swav_kernels.ops.sinkhorn_problem import OP, Problem, prepare

POTENTIALS = "sinkhorn_potentials"
_SCORES = "Tensor scores, int iterations, float epsilon, str? group"
_REST = (
    "Tensor? prototype_weights, Tensor? sample_weights, float? score_bound, str precision, "
    "bool check_finite, str? backend"
)


def _problem(
    op: str,
    least_iterations: int,
    scores: Tensor,
    iterations: int,
    epsilon: float,
    group: str | None,
    prototype_weights: Tensor | None,
    sample_weights: Tensor | None,
    score_bound: float | None,
    precision: str,
    check_finite: bool,
    backend: str | None,
    *,
    has_numbers: bool = True,
) -> Problem:
    return prepare(
        op, scores, iterations, least_iterations, epsilon, False, named_group(group),
        prototype_weights, sample_weights, score_bound, precision, check_finite, backend,
        has_numbers,
    )  # fmt: skip


def _codes(
    scores: Tensor, iterations: int, epsilon: float, group: str | None, hard: bool, *rest: Any
) -> Tensor:
    problem = _problem(OP, 0, scores, iterations, epsilon, group, *rest)
    return problem.run(hard, None).view(scores.shape)


def _codes_shape(
    scores: Tensor, iterations: int, epsilon: float, group: str | None, hard: bool, *rest: Any
) -> Tensor:
    problem = _problem(OP, 0, scores, iterations, epsilon, group, *rest, has_numbers=False)
    return scores.new_empty(scores.shape, dtype=problem.acc)


def _potentials(scores: Tensor, *rest: Any) -> Tensor:
    f = _problem(POTENTIALS, 1, scores, *rest).potentials()
    return f if scores.dim() == 3 else f.squeeze(0)


def _potentials_shape(scores: Tensor, *rest: Any) -> Tensor:
    problem = _problem(POTENTIALS, 1, scores, *rest, has_numbers=False)
    return scores.new_empty((*scores.shape[:-2], scores.shape[-1]), dtype=problem.acc)


def _codes_in_batches(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    return _in_batches(OP, 5, info, in_dims, *args)


def _potentials_in_batches(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    return _in_batches(POTENTIALS, 4, info, in_dims, *args)


def _in_batches(
    op: str, first_weights: int, info: Any, in_dims: Sequence[int | None], *args: Any
) -> tuple[Any, Any]:
    """A batch of problems is more problems: [batch, (A,) N, K] -> [batch * A, N, K]."""
    if in_dims[first_weights] is not None:  # all problems of a call share prototype_weights
        return one_after_the_other(op, info, in_dims, *args)
    scores = batch_of(info, args[0], in_dims[0])
    assert scores is not None
    folded = list(args)
    folded[0] = scores.reshape(-1, *scores.shape[-2:])
    at = first_weights + 1
    weights = batch_of(info, args[at], in_dims[at])
    if weights is not None:
        if weights.dim() == 2:
            weights = weights.unsqueeze(1)
        problems = folded[0].shape[0] // info.batch_size
        weights = weights.expand(info.batch_size, problems, weights.shape[-1])
        folded[at] = weights.reshape(-1, weights.shape[-1])
    result = getattr(torch.ops.swav_kernels, op)(*folded)
    return result.view(*scores.shape[:-2], *result.shape[1:]), 0


define(
    f"{OP}({_SCORES}, bool hard, {_REST}) -> Tensor",
    _codes,
    _codes_shape,
    vmap=_codes_in_batches,
)
define(
    f"{POTENTIALS}({_SCORES}, {_REST}) -> Tensor",
    _potentials,
    _potentials_shape,
    vmap=_potentials_in_batches,
)
