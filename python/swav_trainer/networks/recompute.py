"""Activations that are computed again for the backward pass in place of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(stage: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Call a stage, and keep only its input if it is to be computed again."""
    if not recompute or not torch.is_grad_enabled():
        return stage(x)
    return checkpoint(
        stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _seen_once(stage))
    )


@contextmanager
def _seen_once(stage: nn.Module) -> Iterator[None]:
    """Let batch norms leave their running statistics as they are: they have seen these samples."""
    norms = [
        (norm, norm.momentum, norm.num_batches_tracked.clone())
        for norm in stage.modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
    ]
    for norm, _, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
