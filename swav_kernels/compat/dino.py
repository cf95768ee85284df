"""The Sinkhorns of DINOv2's and DINOv3's losses: methods, which take the `self` they had.

`DINOLoss.sinkhorn_knopp_teacher = dino.sinkhorn_knopp_teacher` swaps one by hand. The functions
`..._in_subgroup` sum over DINOv3's process subgroup, as all of DINOv3 does.
"""

import importlib

import torch
from torch import Tensor, nn

from swav_kernels import checks
from swav_kernels.compat.inputs import Names, check_scores
from swav_kernels.distributed import Group, all_reduce, is_initialized, resolve_group
from swav_kernels.ops.sinkhorn import DEFAULT_ITERATIONS, sinkhorn


def sinkhorn_knopp_teacher(
    self: object,
    teacher_output: Tensor,
    teacher_temp: float,
    n_iterations: int = DEFAULT_ITERATIONS,
    *,
    group: Group = None,
) -> Tensor:
    """Codes of the class tokens: one `sinkhorn` of all views and ranks together.

    Args:
        self: the loss, not needed; None will do.
        teacher_output: scores [N, K] of any size; there they overflow float32 from
            `88 * teacher_temp` on.
        teacher_temp: smoothing.
        n_iterations: T >= 0.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised, as in DINOv2.

    Returns:
        codes [N, K] in float32.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> import torch
        >>> sinkhorn_knopp_teacher(None, torch.eye(4), 0.05).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    return _codes("sinkhorn_knopp_teacher", teacher_output, teacher_temp, n_iterations, group)


def ibot_sinkhorn_knopp_teacher(
    self: object,
    teacher_output: Tensor,
    teacher_temp: float,
    n_masked_patches_tensor: Tensor,
    n_iterations: int = DEFAULT_ITERATIONS,
    *,
    group: Group = None,
) -> Tensor:
    """Codes of the masked patches, of which each rank has its own number, or none.

    Args:
        self: the loss, not needed; None will do.
        teacher_output: scores [N, K] of this rank's masked patches.
        teacher_temp: smoothing.
        n_masked_patches_tensor: N as a tensor. Replaced in place by its sum over the ranks, as
            there; left alone where torch.distributed is not initialised, where DINOv2 fails.
        n_iterations: T >= 0.
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised, as in DINOv2.

    Returns:
        codes [N, K] in float32.

    Raises:
        TypeError, ValueError: as `sinkhorn`.

    Example:
        >>> import torch
        >>> ibot_sinkhorn_knopp_teacher(None, torch.eye(4), 0.05, torch.tensor(4)).shape
        torch.Size([4, 4])
    """
    return _codes(
        "ibot_sinkhorn_knopp_teacher", teacher_output, teacher_temp, n_iterations, group,
        n_masked_patches_tensor, has_count=True,
    )  # fmt: skip


def _codes(
    op: str,
    teacher_output: Tensor,
    teacher_temp: float,
    n_iterations: int,
    group: Group,
    n_masked_patches_tensor: Tensor | None = None,
    has_count: bool = False,
) -> Tensor:
    """Codes under the name of the adapter, and the count of the masked patches summed up."""
    check_scores(op, "teacher_output", teacher_output, "[N, K]")
    if isinstance(teacher_temp, Tensor) and teacher_temp.numel() == 1:
        teacher_temp = teacher_temp.item()
    teacher_temp = checks.check_scale(op, "teacher_temp", teacher_temp)
    if has_count:
        _check_count(op, n_masked_patches_tensor)
    group = resolve_group(op, group, gather_distributed=group is None)
    names = Names(op, "teacher_output", "n_iterations", "teacher_temp")
    scores = teacher_output.detach().float()
    codes = names.call(sinkhorn, scores, n_iterations, teacher_temp, group=group)
    if n_masked_patches_tensor is not None:
        all_reduce(n_masked_patches_tensor, "sum", group)
    return codes


def _check_count(op: str, count: object) -> None:
    if (
        not isinstance(count, Tensor)
        or count.numel() != 1
        or count.dtype == torch.bool
        or count.is_complex()
    ):
        raise TypeError(
            f"{op}: n_masked_patches_tensor must be a tensor of one number, "
            f"got {checks.shown(count)}; pass torch.tensor(len(teacher_output))"
        )


class SinkhornKnoppTeacher(nn.Module):
    """`ibot_sinkhorn_knopp_teacher` as a module, which DINOv3 has in its place.

    Args:
        group: the process group to sum over; None is all ranks once torch.distributed is
            initialised.

    Example:
        >>> import torch
        >>> SinkhornKnoppTeacher()(torch.eye(4), 0.05, torch.tensor(4)).argmax(1).tolist()
        [0, 1, 2, 3]
    """

    def __init__(self, *, group: Group = None) -> None:
        super().__init__()
        self.group = group

    def forward(
        self,
        teacher_output: Tensor,
        teacher_temp: float,
        n_masked_patches_tensor: Tensor,
        n_iterations: int = DEFAULT_ITERATIONS,
    ) -> Tensor:
        """Return codes [N, K]; arguments as of `ibot_sinkhorn_knopp_teacher`."""
        return _codes(
            "SinkhornKnoppTeacher", teacher_output, teacher_temp, n_iterations, self.group,
            n_masked_patches_tensor, has_count=True,
        )  # fmt: skip


def sinkhorn_knopp_teacher_in_subgroup(
    self: object,
    teacher_output: Tensor,
    teacher_temp: float,
    n_iterations: int = DEFAULT_ITERATIONS,
) -> Tensor:
    """`sinkhorn_knopp_teacher` over DINOv3's process subgroup."""
    return _codes(
        "sinkhorn_knopp_teacher_in_subgroup", teacher_output, teacher_temp, n_iterations,
        _process_subgroup(),
    )  # fmt: skip


def ibot_sinkhorn_knopp_teacher_in_subgroup(
    self: object,
    teacher_output: Tensor,
    teacher_temp: float,
    n_masked_patches_tensor: Tensor,
    n_iterations: int = DEFAULT_ITERATIONS,
) -> Tensor:
    """`ibot_sinkhorn_knopp_teacher` over DINOv3's process subgroup."""
    return _codes(
        "ibot_sinkhorn_knopp_teacher_in_subgroup", teacher_output, teacher_temp, n_iterations,
        _process_subgroup(), n_masked_patches_tensor, has_count=True,
    )  # fmt: skip


def _process_subgroup() -> Group:
    if not is_initialized():
        return None
    group: Group = importlib.import_module("dinov3.distributed").get_process_subgroup()
    return group
