"""`torch.ops.swav_kernels.swav_potentials`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.distributed import named_group
from swav_kernels.library.define import batch_of, define, one_after_the_other
from swav_kernels.ops import swav_potentials as op


def _potentials(
    features: Tensor, prototypes: Tensor, epsilon: float, iterations: int, queue: Tensor | None,
    group: str | None, *rest: Any,
) -> Tensor:  # fmt: skip
    return op.potentials_of(
        features, prototypes, epsilon, iterations, queue, named_group(group), *rest
    )


def _shape(
    features: Tensor, prototypes: Tensor, epsilon: float, iterations: int, queue: Tensor | None,
    group: str | None, normalize: bool, prototype_weights: Tensor | None,
    sample_weights: Tensor | None, precision: str, backend: str | None,
) -> Tensor:  # fmt: skip
    op.check(features, prototypes, epsilon, iterations, queue, normalize, precision, backend)
    sums = [x for x in (features, queue) if x is not None]
    acc = checks.accumulate_dtype(prototypes, *sums)
    return features.new_empty((features.shape[0], prototypes.shape[0]), dtype=acc)


def _in_batches(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """A batch of assign crops is more of them; all of a call share prototypes and their weights."""
    features_at, prototypes_at, queue_at, shares_at, weights_at = 0, 1, 4, 7, 8
    weights = args[weights_at]
    is_shared = in_dims[prototypes_at] is None and in_dims[shares_at] is None
    if not is_shared or weights is not None:
        return one_after_the_other(op.POTENTIALS, info, in_dims, *args)
    folded = list(args)
    for at in (features_at, queue_at):
        rows = batch_of(info, args[at], in_dims[at])
        folded[at] = None if rows is None else rows.flatten(0, 1)
    f = torch.ops.swav_kernels.swav_potentials(*folded)
    return f.unflatten(0, (info.batch_size, -1)), 0


define(
    f"{op.POTENTIALS}(Tensor features, Tensor prototypes, float epsilon, int iterations, "
    "Tensor? queue, str? group, bool normalize, Tensor? prototype_weights, "
    "Tensor? sample_weights, str precision, str? backend) -> Tensor",
    _potentials,
    _shape,
    vmap=_in_batches,
)
