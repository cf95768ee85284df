"""Sinkhorn and loss of solo-learn: what `solo.methods.swav` calls."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swav_kernels import checks
from swav_kernels.compat.inputs import Names, codes_of_scores, stack
from swav_kernels.ops.sinkhorn import DEFAULT_EPSILON, DEFAULT_ITERATIONS
from swav_kernels.ops.swapped_cross_entropy import DEFAULT_TEMPERATURE, swapped_cross_entropy


class SinkhornKnopp(nn.Module):
    """Codes of scores, summed over all ranks once torch.distributed is initialised.

    Args:
        num_iters: T >= 0.
        epsilon: smoothing.
        world_size: not needed, it cancels.

    Example:
        >>> SinkhornKnopp()(torch.eye(4)).argmax(1).tolist()
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        num_iters: int = DEFAULT_ITERATIONS,
        epsilon: float = DEFAULT_EPSILON,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.num_iters = num_iters
        self.epsilon = epsilon
        self.world_size = world_size

    def forward(self, Q: Tensor) -> Tensor:
        """Return codes [N, K] of scores Q [N, K], in the dtype of `exp(Q)`."""
        names = Names("SinkhornKnopp", scores="Q", iterations="num_iters")
        return codes_of_scores(names, Q, self.num_iters, self.epsilon, gather_distributed=True)


def swav_loss_func(
    preds: Sequence[Tensor],
    assignments: Sequence[Tensor],
    temperature: float = DEFAULT_TEMPERATURE,
) -> Tensor:
    """`swapped_cross_entropy` of views that each have their codes: a mean over ordered pairs.

    Args:
        preds: V >= 2 views of scores [N, K].
        assignments: the codes [N, K] of each view; they carry no gradient.
        temperature: of the prediction's softmax.

    Returns:
        the loss, a scalar: float32, or float64 for float64 inputs.

    Raises:
        TypeError, ValueError: as `swapped_cross_entropy`.

    Example:
        >>> views = [torch.zeros(2, 4), torch.zeros(2, 4)]
        >>> round(swav_loss_func(views, [torch.full((2, 4), 0.25)] * 2).item(), 4)
        1.3863
    """
    op = "swav_loss_func"
    scores = stack(op, "preds", preds)
    if len(scores) < 2:
        raise ValueError(f"{op}: preds must hold 2 views or more, got {len(scores)}; add crops")
    codes = stack(op, "assignments", assignments, scores[0])[: len(scores)]
    if len(codes) < len(scores):
        raise ValueError(
            f"{op}: assignments must hold the codes of all {len(scores)} views of preds, "
            f"got {len(codes)}; compute them for each view"
        )
    temperature = checks.check_scale(op, "temperature", temperature)
    return swapped_cross_entropy(
        torch.stack(scores), torch.stack(codes).detach(), temperature, assign=range(len(scores))
    )
