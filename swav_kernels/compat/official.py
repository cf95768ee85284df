"""The Sinkhorn of the official SwAV code: `from swav_kernels.compat.official import ...`.

There it is a function of `main_swav.py`, a script: import this one over it.
"""

from torch import Tensor

from swav_kernels.compat.inputs import Names, codes_of_scores
from swav_kernels.distributed import Group
from swav_kernels.ops.sinkhorn import DEFAULT_EPSILON, DEFAULT_ITERATIONS

NAMES = Names("distributed_sinkhorn", scores="out", iterations="sinkhorn_iterations")


def distributed_sinkhorn(
    out: Tensor,
    *,
    epsilon: float = DEFAULT_EPSILON,
    sinkhorn_iterations: int = DEFAULT_ITERATIONS,
    group: Group = None,
) -> Tensor:
    """Codes of all ranks' scores: `softmax(out / epsilon + log(u), -1)`, as in `sinkhorn`.

    The older form `distributed_sinkhorn(Q, nmb_iters)`, of exponentials [K, N], is
    `swav_kernels.compat.bolts.distributed_sinkhorn(None, Q, nmb_iters)`.

    Args:
        out: scores [N, K], queue rows first as there; slice the batch's rows from the result.
        epsilon: smoothing; `args.epsilon` there.
        sinkhorn_iterations: T >= 0; `args.sinkhorn_iterations` there.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised, as there.

    Returns:
        codes [N, K] in the dtype of `exp(out)`.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> import torch
        >>> distributed_sinkhorn(torch.eye(4))[-2:].argmax(1).tolist()
        [2, 3]

    Source: Caron et al. 2020 (arXiv 2006.09882), section 3.1.
    """
    return codes_of_scores(
        NAMES, out, sinkhorn_iterations, epsilon, gather_distributed=group is None, group=group
    )
