"""Optimisers and the learning rate's course."""

import math

import torch

from swav_trainer.config import Config
from swav_trainer.model import Model


def build(model: Model, config: Config) -> torch.optim.Optimizer:
    """Return the optimiser; biases and batch norms have no weight decay."""
    parameters = list(model.parameters())
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def learning_rate(step: int, num_steps: int, config: Config) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate` of the peak."""
    warmup = config.warmup * num_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, num_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    final = config.final_learning_rate
    return config.learning_rate * (final + (1 - final) * cosine)
