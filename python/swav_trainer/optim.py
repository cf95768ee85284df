"""Optimisers and the learning rate's course."""

import math
from collections.abc import Callable
from typing import Any

import torch

from swav_trainer.config import Config
from swav_trainer.model import Model


def build(model: Model, config: Config) -> torch.optim.Optimizer:
    """Return the optimiser; biases and norms have no weight decay unless the settings say so."""
    # a group of their own: torch steps a group at once, and takes no shards beside whole tensors
    prototypes = [head.weight for head in model.prototype_heads]
    parameters = [*model.backbone.parameters(), *model.head.parameters()]
    vectors = [p for p in parameters if p.ndim <= 1]
    decay = config.weight_decay
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": prototypes, "weight_decay": decay},
        {"params": vectors, "weight_decay": decay if config.decay_vectors else 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return Lars(groups, config.learning_rate, config.momentum, config.trust, config.decay_vectors)


class Lars(torch.optim.SGD):
    """SGD whose gradient of a layer has the norm of its weights (You et al. 2017, 1708.03888).

    A matrix w with gradient g moves by `trust |w| / (|g| + decay |w|) (g + decay w)` in the place
    of g, with momentum as in SGD. Vectors move as in SGD unless `vectors` is true; layers of norm 0
    do too. With vectors this is LARC without clipping, as the paper's runs had it.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        trust: float,
        vectors: bool = False,
    ) -> None:
        super().__init__(groups, lr=lr, momentum=momentum)
        self.trust = trust
        self.vectors = vectors

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            scaled = [p for p in group["params"] if self.vectors or p.ndim > 1]
            for p in scaled:
                if p.grad is not None:
                    self._scale(p, group["weight_decay"])
            if scaled:
                group["weight_decay"] = 0.0  # it is in the gradients
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _scale(self, p: torch.Tensor, decay: float) -> None:
        size, slope = p.norm(), p.grad.norm()
        rate = self.trust * size / (slope + decay * size)
        # without a branch on a GPU's numbers, which would wait for them
        rate = torch.where((size > 0) & (slope > 0), rate, torch.ones_like(rate))
        p.grad.add_(p, alpha=decay).mul_(rate)


def peak(config: Config) -> float:
    """The highest learning rate."""
    scale = config.step_images / config.rate_images if config.rate_images else 1.0
    return config.learning_rate * scale


def learning_rate(step: int, num_steps: int, config: Config) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate` of the peak."""
    warmup = config.warmup * num_steps
    if step < warmup:
        start = config.warmup_rate
        return peak(config) * (start + (1 - start) * (step + 1) / (warmup + 1))
    progress = (step - warmup) / max(1.0, num_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    final = config.final_learning_rate
    return peak(config) * (final + (1 - final) * cosine)
