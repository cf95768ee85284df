"""`torch.ops.swav_kernels.swapped_cross_entropy`: the loss and its gradient."""

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
from swav_kernels.ops import swapped_cross_entropy as op
from swav_kernels.reference import swapped_cross_entropy as reference


def _loss(
    scores: Tensor,
    codes: Tensor,
    temperature: float,
    assign: list[int],
    need_scores: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    name, temperature, crops = op.check(scores, codes, temperature, assign, backend)
    checks.check_readable(op.OP, name, scores=scores, codes=codes)
    scores, codes = op.as_they_are(scores.detach(), codes.detach())
    if name != "reference":
        kernels = dispatch.kernels(op.OP, name)
        loss, d_scores = kernels.loss_and_gradient(scores, codes, crops, temperature, need_scores)
    else:
        acc = checks.accumulate_dtype(scores, codes)
        loss, (d_scores,), _ = reference_gradients(
            lambda s: (reference.swapped_cross_entropy(s, codes.to(acc), crops, temperature), ()),
            [scores.to(acc)],
            (need_scores,),
        )
    return loss, filled(d_scores, loss)


def _shapes(
    scores: Tensor,
    codes: Tensor,
    temperature: float,
    assign: list[int],
    need_scores: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    op.check(scores, codes, temperature, assign, backend)
    new = functools.partial(scores.new_empty, dtype=checks.accumulate_dtype(scores, codes))
    return new(()), new(scores.shape if need_scores else ())


define(
    f"{op.OP}(Tensor scores, Tensor codes, float temperature, int[] assign, bool need_scores, "
    "str? backend) -> (Tensor, Tensor)",
    _loss,
    _shapes,
    setup=functools.partial(keep_gradients, 1),
    backward=functools.partial(scale_gradients, op.OP),
)
