"""`--overlap`: the codes are balanced while the network embeds the crops that have none."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from swav_trainer import config, data, ranks
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.settings import load_preset

PLAIN = dataclasses.replace(
    load_preset("digits"), epochs=1, batch_size=98, width=2, dtype="float64", hidden_dim=0,
    head_batch_norm=False, queue_length=196, queue_start=0.0, freeze_steps=0, heads=2,
)  # fmt: skip
OVERLAPPING = dataclasses.replace(PLAIN, overlap=True)
STEPS = 5


def first_steps(settings: config.Config, folder: Path) -> tuple[list[dict[str, float]], Any]:
    """Loss and telemetry of some steps, and the weights after them."""
    trainer = Trainer(settings, data.load(settings), folder)
    told = []
    trainer.model.train()
    for loss, stats in trainer._steps(0, 0):
        trainer.step += 1
        told.append({"loss": float(ranks.mean(loss)), **{n: float(x) for n, x in stats.items()}})
        if trainer.step == STEPS:
            break
    trainer.release()
    return told, trainer.model.state_dict()


def assert_alike(got: Any, wanted: Any, bound: float) -> None:
    for ours, theirs in zip(got[0], wanted[0], strict=True):
        assert ours == pytest.approx(theirs, rel=bound, abs=bound)
    for name, tensor in wanted[1].items():
        torch.testing.assert_close(got[1][name], tensor, rtol=10 * bound, atol=bound)


def test_it_learns_what_a_run_without_it_learns(tmp_path: Path) -> None:
    assert_alike(first_steps(OVERLAPPING, tmp_path), first_steps(PLAIN, tmp_path), 1e-9)


def of_rank(rank: int, settings: config.Config, folder: Path) -> Any:
    return first_steps(settings, folder)


def test_processes_learn_what_one_learns(tmp_path: Path) -> None:
    settings = dataclasses.replace(OVERLAPPING, hidden_dim=8, head_batch_norm=True)
    wanted = first_steps(settings, tmp_path)
    for got in run_ranks(2, tmp_path, of_rank, settings, tmp_path):
        assert_alike(got, wanted, 1e-8)


def test_the_codes_come_before_the_crops_that_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(OVERLAPPING, data.load(OVERLAPPING), tmp_path)
    events: list[str] = []
    trainer.model.backbone.register_forward_pre_hook(
        lambda _, inputs: events.append(f"crops of {inputs[0].shape[-1]}")
    )
    potentials = trainer.objective.potentials
    monkeypatch.setattr(
        trainer.objective, "potentials", lambda x: (events.append("codes"), potentials(x))[1]
    )
    trainer.model.train()
    next(iter(trainer._steps(0, 0)))
    sizes = [f"crops of {kind.size}" for kind in OVERLAPPING.crop_kinds]
    assert events == [sizes[0], "codes", *sizes[1:]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "deepcluster", "queue_length": 0}, "method is deepcluster"),
        ({"assignment": "softmax"}, "assignment is softmax"),
        ({"effective_batch": 196}, "effective_batch is 196"),
        ({"crops": "2x8", "areas": ((0.5, 1.0),)}, "crops are of one kind, 2x8"),
        ({"assign": (0, 2)}, "assign names crop 2"),
    ],
)
def test_where_it_has_no_place_it_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrainerError, match=f"overlap must be false where {reason}"):
        dataclasses.replace(OVERLAPPING, **changes)
