"""Batch norms over several processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swav_trainer import ranks
from swav_trainer.errors import TrainerError


def synchronise(module: nn.Module, size: int) -> None:
    """Let every batch norm see the samples of `size` neighbouring processes, 0 of all.

    Raises:
        TrainerError: the processes make no whole number of groups.
    """
    group = None  # all
    if 0 < size < ranks.count():
        if ranks.count() % size:
            raise TrainerError(
                f"--batch-norm-group {size} does not divide the {ranks.count()} processes"
            )
        group, _ = dist.new_subgroups(size)
    _replace(module, group)


def release(module: nn.Module) -> None:
    """Let go of the groups, so that they can be left."""
    for child in module.modules():
        if isinstance(child, _SyncedBatchNorm):
            child.group = None


def _replace(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            synced = _SyncedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine,
                child.track_running_stats,
            )  # fmt: skip
            synced.group = group
            synced.load_state_dict(child.state_dict())
            like = [*child.parameters(), *child.buffers()]
            setattr(module, name, synced.to(like[0]) if like else synced)
        else:
            _replace(child, group)


class _Sum(torch.autograd.Function):
    """Sum over the processes of a group; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None


class _SyncedBatchNorm(_BatchNorm):
    """Batch norm over the processes of a group; torch's own runs on GPUs only."""

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same, normalised over B of its processes and all places."""
        if not self.training:  # one process evaluates, by itself
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            half = x.dtype in (torch.float16, torch.bfloat16)
            return self._normalised(x.float() if half else x).to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        counted = torch.cat([x.sum(dims), x.new_full((1,), x.numel() / x.shape[1])])
        counted = _Sum.apply(counted, self.group)
        total = counted[-1].detach()
        average = counted[:-1] / total
        centred = x - average.view(shape)
        variance = _Sum.apply(centred.square().sum(dims), self.group) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum  # None is the mean over all batches
                if share is None:
                    share = 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(average, share)
                self.running_var.lerp_(variance * total / (total - 1), share)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y
