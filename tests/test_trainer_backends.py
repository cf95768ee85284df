"""A run learns the same on every backend."""

import dataclasses
from pathlib import Path

import compare
import pytest
from small_runs import SMALL, first_loss
from swav_trainer import data
from swav_trainer.config import Config
from swav_trainer.engine import Trainer
from swav_trainer.log import Log, read

TINY = dataclasses.replace(SMALL, batch_size=32, queue_length=64)


def losses(settings: Config, folder: Path) -> list[float]:
    """The loss of every step of a run on a tiny set."""
    dataset = data.load(settings)
    few = data.Part(dataset.train.images[:320], dataset.train.labels[:320])
    folder.mkdir()
    trainer = Trainer(settings, dataclasses.replace(dataset, train=few), folder)
    with Log(folder, 0, trainer.num_steps, trainer.loader.steps, 1) as log:
        trainer.train(log)
    return [line["loss"] for line in read(folder) if "loss" in line]


def test_backends_train_alike_for_200_steps(tmp_path: Path) -> None:
    """In float64: in float32 two paths that are equal in algebra part after some ten steps."""
    settings = dataclasses.replace(TINY, dtype="float64", epochs=20)
    reference, cpu = (
        losses(dataclasses.replace(settings, backend=name), tmp_path / name)
        for name in ("reference", "cpu")
    )
    assert len(cpu) == 200
    assert max(abs(a - b) for a, b in zip(reference, cpu, strict=True)) <= 1e-8
    assert abs(reference[0] - reference[-1]) > 0.1  # it moved


@pytest.mark.parametrize("hard_codes", [False, True])
def test_the_first_step_is_exact(
    backend: str, device: str, hard_codes: bool, tmp_path: Path
) -> None:
    """Loss, and gradients where they leave the ops, in float32 against the formula in float64."""
    settings = dataclasses.replace(
        TINY, backend=backend, device=device, crops="2x12+1x8", areas=((0.5, 1), (0.2, 0.5)),
        hard_codes=hard_codes,
    )  # fmt: skip
    trainer, features, _ = first_loss(settings, tmp_path)
    weight = trainer.model.prototypes.weight
    leaf = features.detach().requires_grad_()
    loss, _ = trainer.objective.loss(leaf, trainer.loader.rows(0, 0))
    loss.backward()
    z = leaf.detach().double().cpu().requires_grad_()
    c = weight.detach().double().cpu().requires_grad_()
    wanted = compare.swav_loss(z, c, epsilon=settings.epsilon, hard=hard_codes)
    wanted.backward()
    compare.assert_loss(loss.cpu(), wanted)
    compare.assert_gradient(leaf.grad.cpu(), z.grad, settings.epsilon)
    compare.assert_gradient(weight.grad.cpu(), c.grad, settings.epsilon)
