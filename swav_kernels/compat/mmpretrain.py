"""The Sinkhorn of mmpretrain: `mmpretrain.models.losses.swav_loss.distributed_sinkhorn`."""

from torch import Tensor

from swav_kernels.compat.inputs import Names, codes_of_scores
from swav_kernels.distributed import Group

NAMES = Names("distributed_sinkhorn", scores="out", iterations="sinkhorn_iterations")


def distributed_sinkhorn(
    out: Tensor,
    sinkhorn_iterations: int,
    world_size: int,
    epsilon: float,
    *,
    group: Group = None,
) -> Tensor:
    """Codes of all ranks' scores. There the row sums stay local to a rank, which this corrects.

    Args:
        out: scores [N, K], queue rows first as there.
        sinkhorn_iterations: T >= 0.
        world_size: not needed, it cancels.
        epsilon: smoothing.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised.

    Returns:
        codes [N, K] in the dtype of `exp(out)`.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> import torch
        >>> distributed_sinkhorn(torch.eye(4), 3, 1, 0.05).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    return codes_of_scores(
        NAMES, out, sinkhorn_iterations, epsilon, gather_distributed=group is None, group=group
    )
