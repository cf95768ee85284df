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

if TYPE_CHECKING:
    from swav_trainer.engine import Trainer


def train_step(trainer: "Trainer", epoch: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a step; the loss of the whole batch and its telemetry."""
    trainer.begin_step()
    objective = trainer.objective
    assign_features = _embed(trainer, epoch, step)
    with trainer.clock.part("loss"):
        potentials = objective.potentials(assign_features)
    loss = _learn(trainer, epoch, step, potentials)
    stats = objective.telemetry(assign_features, potentials, loss)
    trainer.end_step(assign_features, trainer.loader.rows(epoch, step))
    return loss, stats


@torch.no_grad()
def _embed(trainer: "Trainer", epoch: int, step: int) -> Tensor:
    """Features [A, B, D] of this process's images; the network is left as it was."""
    with untouched_buffers(trainer.model):
        parts = []
        for crops, _ in parts_of(trainer, epoch, step):
            with trainer.clock.part("network"):
                parts.append(trainer.assigned(trainer.project(trainer.model, crops)))
    return torch.cat(parts, 1)


@contextlib.contextmanager
def untouched_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Put back batch norms' running statistics afterwards."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, saved in zip(buffers, before, strict=True):
            buffer.copy_(saved)


def _learn(trainer: "Trainer", epoch: int, step: int, potentials: list[Tensor] | None) -> Tensor:
    """Gradients of the whole batch, in the parameters; its loss."""
    total = torch.zeros((), device=trainer.device, dtype=trainer.dtype)
    left = trainer.loader.share
    for crops, rows in parts_of(trainer, epoch, step):
        left -= len(rows)
        with _without_exchange(trainer) if left else contextlib.nullcontext():
            with trainer.clock.part("network"):
                features = trainer.project(trainer.network, crops)
            with trainer.clock.part("loss"):
                loss = trainer.objective.part_loss(features, rows, potentials)
            loss = loss * (len(rows) / trainer.loader.share)
            trainer.learn(loss)
        total += loss.detach()
    return total


def parts_of(trainer: "Trainer", epoch: int, step: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Crops and images of a step, part by part, each with the seed of its dropout."""
    loader = trainer.loader
    crops_of_parts = loader.micro_batches(epoch, step)
    parts = zip(crops_of_parts, loader.parts(epoch, step), strict=True)
    for number, (crops, rows) in enumerate(parts):
        with trainer.chance(number):
            yield crops, rows


def summary(trainer: "Trainer") -> str:
    """How a step is taken over more images than fit at a time, for the user."""
    config, loader = trainer.config, trainer.loader
    size = trainer.dtype.itemsize * len(config.assign) * loader.share * config.feature_dim
    return (
        f"a step of {config.step_images} images in parts of {config.batch_size}, each embedded "
        f"twice; {size / 2**20:.1f} MiB of features are held of the whole"
    )


def _without_exchange(trainer: "Trainer") -> contextlib.AbstractContextManager[None]:
    """Leave the processes' gradients apart until the last part."""
    if trainer.shards is not None:
        return trainer.shards.without_exchange()
    network = trainer.network
    is_shared = isinstance(network, DistributedDataParallel)
    return network.no_sync() if is_shared else contextlib.nullcontext()
