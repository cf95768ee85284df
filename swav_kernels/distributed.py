"""Process groups: which ranks an op sums over, and the few collectives it needs.

`group=None` is this process alone; a named group implies summing over it. Whether and which
collective runs never depends on local data, so ranks cannot fall out of step.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None

_REDUCE_OPS = {"sum": "SUM", "max": "MAX", "min": "MIN"}
_warned: set[str] = set()


def is_initialized() -> bool:
    """True once a default process group exists (also on builds without distributed support)."""
    return dist.is_available() and dist.is_initialized()


def resolve_group(op: str, group: Group, gather_distributed: bool = False) -> Group:
    """Return the group to sum over, or None for this process alone."""
    if group is None:
        return dist.group.WORLD if gather_distributed and is_initialized() else None
    not_a_member: object = dist.GroupMember.NON_GROUP_MEMBER  # what new_group gives other ranks
    if not isinstance(group, dist.ProcessGroup) and group is not not_a_member:
        raise TypeError(
            f"{op}: group must be a torch.distributed.ProcessGroup, got {type(group).__name__}; "
            "pass torch.distributed.group.WORLD for all ranks"
        )
    if gather_distributed:
        raise ValueError(
            f"{op}: group and gather_distributed=True both name the ranks to sum over; "
            "pass one of them"
        )
    if not is_initialized():
        raise ValueError(
            f"{op}: group was given but torch.distributed is not initialised; "
            "call torch.distributed.init_process_group() first or pass group=None"
        )
    if dist.get_rank(group) < 0:
        raise ValueError(
            f"{op}: this process is not a member of group; pass a group that contains it"
        )
    return group


def group_name(op: str, group: Group, gather_distributed: bool = False) -> str | None:
    """Return the name by which `named_group` finds `resolve_group`'s: a graph holds no objects."""
    group = resolve_group(op, group, gather_distributed)
    return None if group is None else str(group.group_name)


def named_group(name: str | None) -> Group:
    """Return the group of that name, in this process or in one that loads the graph later."""
    c10d: Any = dist.distributed_c10d
    group: Group = None if name is None else c10d._resolve_process_group(name)
    return group


def warn_if_ungrouped(
    op: str,
    group: Group,
    remedy: str = "group=torch.distributed.group.WORLD",
    stacklevel: int = 4,  # past the op and its decorator: the line that called it
) -> None:
    """Warn once per op when several ranks would each balance only their own rows."""
    if group is None and op not in _warned and is_initialized() and dist.get_world_size() > 1:
        _warned.add(op)
        warnings.warn(
            f"{op}: {dist.get_world_size()} ranks are running, and each balances only its own "
            f"rows. Pass {remedy} to balance them all.",
            stacklevel=stacklevel,
        )


def all_reduce(tensor: Tensor, reduce_op: str, group: Group) -> Tensor:
    """Reduce in place over the group ("sum", "max" or "min"); the tensor itself without a group."""
    if group is not None:
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, _REDUCE_OPS[reduce_op]), group=group)
    return tensor


def raise_if_not_finite(op: str, argument: str, rows: Tensor, group: Group) -> None:
    """Raise on all ranks together if any row [..., N, K] holds NaN or +inf (-inf is a mask).

    Costs one host synchronisation, and one collective that always runs when a group is named.
    """
    if rows.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{op}: check_finite=True needs a host synchronisation, which a CUDA graph capture "
            "forbids; check before the capture and pass check_finite=False"
        )
    rank = dist.get_rank(group) if group is not None else 0
    stride = 2**40
    code = torch.full((), stride * 2**20, dtype=torch.int64, device=rows.device)
    if rows.numel():
        row_max = rows.amax(-1).reshape(-1)  # NaN propagates, +inf is its own maximum
        bad = ~(row_max < torch.inf)
        first = rank * stride + bad.int().argmax()
        code = torch.where(bad.any(), first, code)
    found = int(all_reduce(code.reshape(1), "min", group))
    if found < stride * 2**20:
        row = found % stride
        num_rows = rows.shape[-2]
        where = (
            f"row {row}" if rows.dim() == 2 else f"problem {row // num_rows}, row {row % num_rows}"
        )
        on_rank = f" on rank {found // stride}" if group is not None else ""
        raise ValueError(
            f"{op}: {argument} hold NaN or +inf{on_rank}, first in {where}; "
            "mask with -inf, or look for the overflow that made them"
        )
