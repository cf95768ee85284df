"""A step over more images than fit: the gradient of the whole batch, a part of it at a time.

Codes depend on the whole batch, so adding up the gradients of its parts would be another method.
First all parts are embedded without gradient, and their Sinkhorn leaves the potentials f [A, K];
then each part runs again, the same crops and the same dropout, with f for its codes. What is held
of the whole are the features [A, B, D].
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from swav_trainer.config import ASSIGN_CROPS

if TYPE_CHECKING:
    from swav_trainer.engine import Trainer


def train_step(trainer: "Trainer", epoch: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a step; the loss of the whole batch and its telemetry."""
    trainer.begin_step()
    assign_features = _embed(trainer, epoch, step)
    potentials = trainer.potentials(assign_features)
    loss = _learn(trainer, epoch, step, potentials)
    stats = trainer.telemetry(assign_features, potentials, loss)
    trainer.end_step(assign_features)
    return loss, stats


@torch.no_grad()
def _embed(trainer: "Trainer", epoch: int, step: int) -> Tensor:
    """Features [A, B, D] of this process's images; the network is left as it was."""
    buffers = list(trainer.model.buffers())  # batch norms' running statistics
    before = [buffer.clone() for buffer in buffers]
    parts = [
        trainer.project(trainer.model, crops)[:ASSIGN_CROPS]
        for crops in _parts(trainer, epoch, step)
    ]
    for buffer, saved in zip(buffers, before, strict=True):
        buffer.copy_(saved)
    return torch.cat(parts, 1)


def _learn(trainer: "Trainer", epoch: int, step: int, potentials: Tensor) -> Tensor:
    """Gradients of the whole batch, in the parameters; its loss."""
    total = torch.zeros((), device=trainer.device, dtype=potentials.dtype)
    left = trainer.loader.share
    for crops in _parts(trainer, epoch, step):
        images = len(crops[0]) // ASSIGN_CROPS
        left -= images
        with _without_exchange(trainer.network) if left else contextlib.nullcontext():
            features = trainer.project(trainer.network, crops)
            loss = trainer.loss(features, potentials)[0] * (images / trainer.loader.share)
            trainer.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _parts(trainer: "Trainer", epoch: int, step: int) -> Iterator[list[Tensor]]:
    """The step's crops, part by part, each with the seed of its dropout."""
    parts = trainer.probe.clock.waiting(trainer.loader.micro_batches(epoch, step))
    for number, crops in enumerate(parts):
        with trainer.chance(number):
            yield crops


def _without_exchange(network: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Leave the processes' gradients apart until the last part."""
    is_shared = isinstance(network, DistributedDataParallel)
    return network.no_sync() if is_shared else contextlib.nullcontext()
