"""The network in shards: each process keeps its part of every weight, gradient and moment.

FSDP (Zhao et al. 2023, arXiv 2304.11277) gathers the weights of a block when the block is used. The
prototypes stay whole in each process: the kernels take plain tensors, and K x D is small beside a
network.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from swav_trainer import networks, ranks
from swav_trainer.errors import TrainerError
from swav_trainer.model import Model


class Shards:
    """A model whose network is dealt out to all processes, in place; all make one.

    Args:
        model: the whole model.
        device: where it is.

    Raises:
        TrainerError: it is a network of the user's that FSDP does not take.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        mesh = init_device_mesh(device.type, (ranks.count(),))
        model.to(memory_format=torch.contiguous_format)  # FSDP takes no other
        # networks of ours know their blocks; another one is gathered as a whole
        blocks = [m for m in model.backbone.modules() if isinstance(m, networks.BLOCKS)]
        whole = {head.weight for head in model.prototype_heads}
        try:
            for module in (*(blocks or [model.backbone]), model.head):
                fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh, ignored_params=whole)
        except (ValueError, NotImplementedError) as error:
            raise TrainerError(f"--shard cannot deal this network out: {error}") from error

    @contextlib.contextmanager
    def without_exchange(self) -> Iterator[None]:
        """Leave the processes' gradients apart, and whole, until a backward pass outside."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def clip_gradient(self, largest: float) -> None:
        """Do what torch's clip_grad_norm_ does, which refuses shards beside whole tensors."""
        with_gradient = [p for p in self.model.parameters() if p.grad is not None]
        shards = [p for p in with_gradient if isinstance(p, DTensor)]
        wholes = [p for p in with_gradient if not isinstance(p, DTensor)]
        norms = [get_total_norm([p.grad for p in kind]) for kind in (shards, wholes) if kind]
        total = torch.stack([_whole(norm) for norm in norms]).norm()
        for kind in (shards, wholes):
            clip_grads_with_norm_(kind, largest, total)

    def places(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the parameters by the names that a checkpoint gives them and their moments."""
        numbered = (p for group in optimizer.param_groups for p in group["params"])
        named = {f"model.{name}": p for name, p in self.model.named_parameters()}
        return named | {f"optimizer.{number}": p for number, p in enumerate(numbered)}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
