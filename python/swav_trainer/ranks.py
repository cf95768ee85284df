"""The processes of one run under torchrun: who this one is, and what they do together."""

import gc
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from swav_trainer.errors import TrainerError

T = TypeVar("T")
TIMEOUT = timedelta(seconds=60)  # of a collective: longer than any step, short of a night lost


def join(device: str, timeout: timedelta = TIMEOUT) -> None:
    """Join the processes that torchrun has started; nothing if there is one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)


def leave() -> None:
    """Leave them; those that go on are not waited for. Nothing may hold the group any more."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()
    # Gloo's thread drops a finished collective a moment later and needs Python's lock for it; a
    # group that is freed before waits for that thread, with the lock, for ever
    time.sleep(0.2)
    dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which one this is."""
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    """True in the process that writes, prints and evaluates."""
    return index() == 0


def group() -> dist.ProcessGroup | None:
    """All processes, or None for one alone."""
    return dist.group.WORLD if count() > 1 else None


def local_device(name: str) -> str:
    """Return the GPU of this process on its machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and count() > 1 else name


def is_loss_of_a_process(error: RuntimeError) -> bool:
    """Tell whether a collective failed because another process has gone or hangs."""
    words = ("gloo", "nccl", "connection", "timed out", "socket")
    return count() > 1 and any(word in str(error).lower() for word in words)


def share(total: int, name: str) -> int:
    """Return this process's part of a number that all share.

    Raises:
        TrainerError: it does not divide.
    """
    if total % count():
        raise TrainerError(
            f"{name} {total} is shared by {count()} processes and does not divide: use a multiple "
            f"of {count()}, or another --nproc-per-node"
        )
    return total // count()


def agree(flag: bool, device: torch.device) -> bool:
    """Tell whether the flag is up in any process."""
    if count() == 1:
        return flag
    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def mean(value: Tensor) -> Tensor:
    """Mean of a number over the processes."""
    if count() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= count()
    return value


def gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, in their order."""
    if count() == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(count())]
    dist.all_gather(tensors, tensor.contiguous())
    return tensors


def tell(find: Callable[[], T]) -> T:
    """Return in all processes what the main one finds, or raise the mistake that it finds."""
    if count() == 1:
        return find()
    found: list[T | TrainerError | None] = [None]
    if is_main():
        try:
            found[0] = find()
        except TrainerError as error:
            found[0] = error
    dist.broadcast_object_list(found)
    if isinstance(found[0], TrainerError):
        raise found[0]
    return found[0]


def synchronise_batch_norms(module: nn.Module) -> None:
    """Let every batch norm see the samples of all processes."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            synced = _SyncedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine,
                child.track_running_stats,
            )  # fmt: skip
            synced.load_state_dict(child.state_dict())
            like = [*child.parameters(), *child.buffers()]
            setattr(module, name, synced.to(like[0]) if like else synced)
        else:
            synchronise_batch_norms(child)


class _SyncedBatchNorm(_BatchNorm):
    """Batch norm over all processes; torch's own runs on GPUs only."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same, normalised over B of all processes and all places."""
        if not self.training:  # one process evaluates, by itself
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            half = x.dtype in (torch.float16, torch.bfloat16)
            return self._normalised(x.float() if half else x).to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        counted = torch.cat([x.sum(dims), x.new_full((1,), x.numel() / x.shape[1])])
        counted = all_reduce(counted)
        total = counted[-1].detach()
        average = counted[:-1] / total
        centred = x - average.view(shape)
        variance = all_reduce(centred.square().sum(dims)) / total
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
