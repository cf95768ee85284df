"""The Sinkhorns of lightning-bolts: methods of its `SWAVLoss`, which take the `self` they had.

The older form of the official code is `distributed_sinkhorn` too, with None for `self`.
"""

from torch import Tensor

from swav_kernels.compat.inputs import Names, codes_of_exponentials
from swav_kernels.distributed import Group


def sinkhorn(self: object, q: Tensor, num_iters: int) -> Tensor:
    """Codes of this process's exponentials: `sinkhorn` of `log(q).T`; q is left as it is.

    Args:
        self: the loss, not needed; None will do.
        q: [K, N], exp(scores / epsilon). 0 gives code 0, an infinite entry makes the codes NaN.
        num_iters: T >= 0; 0 normalises each sample, softmax(scores / epsilon).

    Returns:
        codes [N, K] in float32, also of a double q.

    Raises:
        TypeError, ValueError: as `swav_kernels.sinkhorn`.

    Example:
        >>> import torch
        >>> sinkhorn(None, torch.eye(4).div(0.05).exp(), 3).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    names = Names("sinkhorn", scores="q", iterations="num_iters")
    return codes_of_exponentials(names, q, num_iters, gather_distributed=False).float()


def older_sinkhorn(self: object, Q: Tensor, nmb_iters: int) -> Tensor:
    """`sinkhorn` with the argument names of bolts 0.6 and before.

    Args:
        self: the loss, or the module `SwAV` before 0.6; not needed.
        Q: as q of `sinkhorn`.
        nmb_iters: as num_iters of `sinkhorn`.

    Returns:
        codes [N, K] in float32.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> import torch
        >>> older_sinkhorn(None, torch.eye(4).div(0.05).exp(), nmb_iters=3).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    names = Names("older_sinkhorn", scores="Q", iterations="nmb_iters")
    return codes_of_exponentials(names, Q, nmb_iters, gather_distributed=False).float()


def distributed_sinkhorn(self: object, q: Tensor, num_iters: int, *, group: Group = None) -> Tensor:
    """`sinkhorn` over all ranks.

    Args:
        self: the loss, not needed; None will do.
        q: [K, N], exp(scores / epsilon).
        num_iters: T >= 0.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised, as there.

    Returns:
        codes [N, K] in float32.

    Raises:
        TypeError, ValueError: as `swav_kernels.sinkhorn`.

    Example:
        >>> import torch
        >>> distributed_sinkhorn(None, torch.eye(4).div(0.05).exp(), 3).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    names = Names("distributed_sinkhorn", scores="q", iterations="num_iters")
    return codes_of_exponentials(
        names, q, num_iters, gather_distributed=group is None, group=group
    ).float()


def older_distributed_sinkhorn(
    self: object, Q: Tensor, nmb_iters: int, *, group: Group = None
) -> Tensor:
    """`distributed_sinkhorn` with the argument names of bolts 0.6 and before.

    Args:
        self: the loss, or the module `SwAV` before 0.6; not needed.
        Q: as q of `distributed_sinkhorn`.
        nmb_iters: as num_iters of `distributed_sinkhorn`.
        group: as in `distributed_sinkhorn`.

    Returns:
        codes [N, K] in float32.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> import torch
        >>> Q = torch.eye(4).div(0.05).exp()
        >>> older_distributed_sinkhorn(None, Q, nmb_iters=3).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    names = Names("older_distributed_sinkhorn", scores="Q", iterations="nmb_iters")
    return codes_of_exponentials(
        names, Q, nmb_iters, gather_distributed=group is None, group=group
    ).float()
