"""The Sinkhorns of VISSL: what `vissl.losses.swav_loss` calls."""

import math

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.compat.inputs import Names, check_scores, codes_of_exponentials, flag
from swav_kernels.distributed import Group


def distributed_sinkhornknopp(
    Q: Tensor,
    num_iter: int,
    hard_assignment: bool,
    world_size: int,
    use_double_prec: bool,
    use_gpu: bool,
    *,
    group: Group = None,
) -> Tensor:
    """Codes of exponentials: `sinkhorn` of `log(Q).T` with epsilon 1; Q is left as it is.

    Args:
        Q: [K, N], exp(scores / epsilon - c) with one c for all ranks. 0 gives code 0; an infinite
            entry makes the codes NaN, where VISSL takes the largest finite one for it.
        num_iter: T >= 0; 0 normalises each sample, softmax(scores / epsilon).
        hard_assignment: one-hot rows, the largest code.
        world_size: not needed, it cancels.
        use_double_prec: not needed, the dtype of Q says it.
        use_gpu: not needed, the device of Q says it.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised, as there.

    Returns:
        codes [N, K] in float32, also of a double Q.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> Q = torch.eye(4).div(0.05).exp()
        >>> distributed_sinkhornknopp(Q, 3, True, 1, False, False).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    op = "distributed_sinkhornknopp"
    return codes_of_exponentials(
        Names(op, scores="Q", iterations="num_iter"),
        Q,
        num_iter,
        gather_distributed=group is None,
        group=group,
        hard=flag(op, "hard_assignment", hard_assignment),  # VISSL passes a tensor
    ).float()


def distributed_sinkhorn_powerlaw(
    Q: Tensor,
    num_iter: int,
    powerlaw: float,
    hard_assignment: bool,
    world_size: int,
    use_double_prec: bool,
    use_gpu: bool,
    *,
    group: Group = None,
) -> Tensor:
    """`distributed_sinkhornknopp` with shares of the samples `r[k] = (k + 1) ** -powerlaw`.

    Args:
        Q: as in `distributed_sinkhornknopp`.
        num_iter: as in `distributed_sinkhornknopp`.
        powerlaw: exponent of the shares; 0 makes them equal.
        hard_assignment: as in `distributed_sinkhornknopp`.
        world_size: not needed.
        use_double_prec: not needed.
        use_gpu: not needed.
        group: as in `distributed_sinkhornknopp`.

    Returns:
        codes [N, K] in float32.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> Q = torch.ones(4, 6)
        >>> codes = distributed_sinkhorn_powerlaw(Q, 3, 1.0, False, 1, False, False)
        >>> round((codes[0, 0] / codes[0, 3]).item(), 3)
        4.0
    """
    op = "distributed_sinkhorn_powerlaw"
    check_scores(op, "Q", Q, "[K, N]")
    exponent = checks.check_number(op, "powerlaw", powerlaw)
    if not math.isfinite(exponent):
        raise ValueError(
            f"{op}: powerlaw must be finite, got {exponent:g}; 0 makes the shares equal"
        )
    ranks = torch.arange(1, Q.shape[0] + 1, dtype=torch.float64, device=Q.device)
    return codes_of_exponentials(
        Names(op, scores="Q", iterations="num_iter"),
        Q,
        num_iter,
        gather_distributed=group is None,
        group=group,
        hard=flag(op, "hard_assignment", hard_assignment),
        prototype_weights=ranks**-exponent,
    ).float()
