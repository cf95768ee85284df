"""Exact accumulation: a batch in parts gives the codes, loss and gradients of the whole."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from pictures import pictures
from swav_trainer import config, data, optim, ranks
from swav_trainer.engine import Trainer
from swav_trainer.loader import Loader
from swav_trainer.settings import load_preset
from torch import nn

WHOLE = dataclasses.replace(
    load_preset("digits"), epochs=1, batch_size=98, width=2, dtype="float64",
    freeze_steps=1, queue_length=196, queue_start=0.0, optimizer="sgd", learning_rate=0.1,
)  # fmt: skip
PARTS = dataclasses.replace(WHOLE, batch_size=40, effective_batch=98)  # 33, 33 and 32
STEPS = 4


def trainer_of(settings: config.Config, folder: Path, head: nn.Module | None = None) -> Trainer:
    """A run without batch norms, which see only the part that they are given."""
    trainer = Trainer(settings, data.load(settings), folder)
    without_batch_norm(trainer.model)
    if head is not None:
        trainer.model.head.append(head)
    trainer.optimizer = optim.build(trainer.model, settings)
    return trainer


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_batch_norm(child)


def first_steps(trainer: Trainer) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
    """Losses of some steps, the weights after them and the queue."""
    losses = []
    trainer.model.train()
    for loss, stats in trainer._steps(0, 0):
        trainer.step += 1
        losses.append(float(ranks.mean(loss)))
        assert abs(float(stats["loss_minus_log_k"]) - losses[-1] + torch.tensor(60.0).log()) < 1e-6
        if trainer.step == STEPS:
            break
    return losses, trainer.model.state_dict(), trainer.objective.queue.rows()


def test_parts_learn_what_the_whole_learns(tmp_path: Path) -> None:
    wanted = first_steps(trainer_of(WHOLE, tmp_path))
    got = first_steps(trainer_of(PARTS, tmp_path))
    assert max(abs(a - b) for a, b in zip(got[0], wanted[0], strict=True)) < 1e-9
    for name, tensor in wanted[1].items():
        torch.testing.assert_close(got[1][name], tensor, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(got[2], wanted[2])


def test_float32_gradients_agree_to_1e_5(tmp_path: Path) -> None:
    gradients = []
    for settings in (WHOLE, PARTS):
        trainer = trainer_of(dataclasses.replace(settings, dtype="float32"), tmp_path)
        trainer.end_step = lambda features, rows: None
        next(iter(trainer._steps(0, 0)))
        gradients.append([p.grad for p in trainer.model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


def parts_of_rank(rank: int, settings: config.Config, folder: Path) -> Any:
    trainer = Trainer(settings, data.load(settings), folder)
    without_batch_norm(trainer.model)
    trainer.network = nn.parallel.DistributedDataParallel(trainer.model)
    trainer.optimizer = optim.build(trainer.model, settings)
    losses, weights, _ = first_steps(trainer)
    return losses, weights


def test_processes_share_the_parts(tmp_path: Path) -> None:
    _, wanted, _ = first_steps(trainer_of(WHOLE, tmp_path))
    for _, got in run_ranks(2, tmp_path, parts_of_rank, PARTS, tmp_path):
        for name, tensor in wanted.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-7, atol=1e-9)


def test_both_phases_see_the_same_dropout(tmp_path: Path) -> None:
    trainer = trainer_of(PARTS, tmp_path, nn.Dropout(0.5))
    seen: list[torch.Tensor] = []
    trainer.model.register_forward_hook(lambda *arguments: seen.append(arguments[2].detach()))
    trainer.model.train()
    before = torch.get_rng_state()
    next(iter(trainer._steps(0, 0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])


def test_batch_norms_count_each_part_once(tmp_path: Path) -> None:
    trainer = Trainer(PARTS, data.load(PARTS), tmp_path)
    trainer.model.train()
    next(iter(trainer._steps(0, 0)))
    assert int(trainer.model.head[1].num_batches_tracked) == 3


@pytest.mark.parametrize("preset", ["digits", "folder"])
def test_crops_of_the_parts_are_those_of_the_whole(preset: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(load_preset(preset), batch_size=7, crops="2x16+4x8", workers=1)
    if preset == "folder":
        settings = dataclasses.replace(settings, data=f"folder:{pictures(tmp_path)}")
    part = data.load(settings).train
    whole = list(Loader(part, settings).batches(0))[1]
    micro = dataclasses.replace(settings, batch_size=3, effective_batch=7)
    parts = list(Loader(part, micro).micro_batches(0, 1))
    assert [len(crops[0]) for crops in parts] == [6, 4, 4]  # even, and none of one image
    for kind, crops in enumerate(whole):
        count = len(crops) // 7
        joined = [piece[kind].view(count, -1, *crops.shape[1:]) for piece in parts]
        assert torch.equal(torch.cat(joined, 1).flatten(0, 1), crops)
