"""`torch.ops.swav_kernels.prototype_cross_entropy`: the loss and its gradient."""

import functools

from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.library.define import (
    define,
    filled,
    keep_gradients,
    reference_gradients,
    scale_gradients,
)
from swav_kernels.ops import prototype_cross_entropy as op
from swav_kernels.ops import swapped_cross_entropy as swapped
from swav_kernels.reference import prototype_cross_entropy as reference


def _loss(
    scores: Tensor,
    codes: Tensor,
    temperature: float,
    weights: Tensor | None,
    need_scores: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    name, temperature = op.check(scores, codes, temperature, weights, backend)
    checks.check_readable(op.OP, name, student_scores=scores, teacher_codes=codes, weights=weights)
    acc = checks.accumulate_dtype(scores, codes)
    weights = None if weights is None else weights.to(acc)
    if name == "reference":
        loss, (d_scores,), _ = reference_gradients(
            lambda s: (
                reference.prototype_cross_entropy(s, codes.to(acc), temperature, weights), ()
            ),
            [scores.detach().to(acc)],
            (need_scores,),
        )  # fmt: skip
        return loss, filled(d_scores, loss)
    num_rows = len(scores)
    halves = op.halves(weights, scores.detach(), codes.detach())
    kernels = dispatch.kernels(swapped.OP, name)
    loss, d_halves = kernels.loss_and_gradient(*halves, op.ASSIGN, temperature, need_scores)
    if num_rows % 2:
        loss = loss * op.unpadded(num_rows)
    if d_halves is None:
        return loss, filled(None, loss)
    d_scores = d_halves.flatten(0, 1)
    if num_rows % 2:  # and so in memory of its own
        d_scores = d_scores[:num_rows] * op.unpadded(num_rows)
    return loss, d_scores


def _shapes(
    scores: Tensor,
    codes: Tensor,
    temperature: float,
    weights: Tensor | None,
    need_scores: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    op.check(scores, codes, temperature, weights, backend)
    new = functools.partial(scores.new_empty, dtype=checks.accumulate_dtype(scores, codes))
    return new(()), new(scores.shape if need_scores else ())


define(
    f"{op.OP}(Tensor student_scores, Tensor teacher_codes, float temperature, Tensor? weights, "
    "bool need_scores, str? backend) -> (Tensor, Tensor)",
    _loss,
    _shapes,
    setup=functools.partial(keep_gradients, 1),
    backward=functools.partial(scale_gradients, op.OP),
)
