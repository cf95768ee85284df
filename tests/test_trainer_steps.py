"""What a step does with its gradients: clipping, half precision, loss scales."""

import dataclasses
from pathlib import Path

import pytest
import torch
from swav_trainer import config, data
from swav_trainer.engine import Trainer
from swav_trainer.settings import load_preset

SETTINGS = dataclasses.replace(
    load_preset("digits"), epochs=1, width=4, freeze_steps=0, optimizer="sgd",
    learning_rate=1.0, warmup=0.0, weight_decay=0.0, momentum=0.0,
)  # fmt: skip


def first_step(settings: config.Config, folder: Path) -> tuple[float, list[torch.Tensor]]:
    """The loss of one step, and how far it moved each parameter."""
    trainer = Trainer(settings, data.load(settings), folder)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.model.train()
    loss, _ = next(iter(trainer._steps(0, 0)))
    after = trainer.model.parameters()
    return float(loss), [b - p.detach() for b, p in zip(before, after, strict=True)]


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([x.flatten() for x in tensors]).norm())


def test_the_gradient_is_clipped_as_a_whole(tmp_path: Path) -> None:
    loss, free = first_step(SETTINGS, tmp_path)
    limit = norm(free) / 3
    same_loss, clipped = first_step(dataclasses.replace(SETTINGS, clip_gradient=limit), tmp_path)
    assert same_loss == loss
    for x, y in zip(clipped, free, strict=True):
        torch.testing.assert_close(x, y / 3, rtol=1e-3, atol=1e-7)
    _, untouched = first_step(dataclasses.replace(SETTINGS, clip_gradient=1e6), tmp_path)
    assert all(map(torch.equal, untouched, free))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same(tmp_path: Path, half: str) -> None:
    loss, wanted = first_step(SETTINGS, tmp_path)
    half_loss, got = first_step(dataclasses.replace(SETTINGS, autocast=half), tmp_path)
    assert half_loss != loss
    assert abs(half_loss - loss) < 0.01 * loss
    cosine = sum(float((x * y).sum()) for x, y in zip(got, wanted, strict=True))
    assert cosine > 0.9 * norm(got) * norm(wanted)
    assert 0.8 < norm(got) / norm(wanted) < 1.25
