"""The processes of one run under torchrun: who this one is, and what they do together."""

import functools
import gc
import inspect
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from swav_trainer.errors import TrainerError

T = TypeVar("T")
TIMEOUT = timedelta(seconds=50)  # of a collective: longer than any step; told within a minute


def join(device: str, timeout: timedelta = TIMEOUT) -> None:
    """Join the processes that torchrun has started; nothing if there is one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # processes that are started again must not meet the addresses of those before them
        store = dist.PrefixStore(f"attempt{restarts()}", _agent_store())
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timeout,
        store=store,
        rank=-1 if store is None else int(os.environ["RANK"]),
        world_size=-1 if store is None else int(os.environ["WORLD_SIZE"]),
    )


def restarts() -> int:
    """How often torchrun has started these processes again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def remember(key: str, value: str) -> None:
    """Keep a word in torchrun, for processes that it starts again."""
    if "TORCHELASTIC_RESTART_COUNT" in os.environ and is_main():
        _agent_store().set(key, value)


def recall(key: str) -> str | None:
    """Return what processes before these have kept, or None."""
    if not restarts() or not _agent_store().check([key]):
        return None
    return _agent_store().get(key).decode()


@functools.cache
def _agent_store() -> dist.TCPStore:
    """Return the store of torchrun itself, which outlives the processes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, int(os.environ["WORLD_SIZE"]), is_master=False)


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


def group_apart() -> dist.ProcessGroup | None:
    """All processes once more: its collectives do not wait for those of `group`."""
    return dist.new_group(timeout=TIMEOUT) if count() > 1 else None


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


def share_gradients(network: torch.nn.Module, find_unused: bool) -> DistributedDataParallel:
    """Wrap the network so that all processes get the mean of their gradients."""
    # the batch norms see to their statistics; torch 2.13 has renamed the setting
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        network,
        gradient_as_bucket_view=True,
        find_unused_parameters=find_unused,
        **{buffers: False},
    )


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
