"""Crops, codes, heads, rates and queue beside those of the demo."""

import dataclasses
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, first_loss, trained
from swav_trainer import crops, data, optim
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.log import read
from torch import Tensor, nn
from torch.nn import functional


@pytest.mark.parametrize(
    ("text", "areas", "message"),
    [
        ("2x224,6x96", ((0.1, 1.0),), "crops must be kinds of number x pixels"),
        ("2x224+0x96", ((0.1, 1.0),) * 2, "crops must be"),
        ("2x3", ((0.1, 1.0),), "4 pixels at least"),
        ("2x224+6x96", ((0.1, 1.0),), "each of the 2 kinds of crops .*, got 1 pairs"),
        ("1x224", ((0.1, 1.0),), "two at least"),
    ],
)
def test_wrong_crops_are_refused(text: str, areas: tuple, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        dataclasses.replace(SMALL, crops=text, areas=areas)


@pytest.mark.parametrize("assign", [(), (0, 0), (6,), (-1, 0)])
def test_wrong_assign_crops_are_refused(assign: tuple[int, ...]) -> None:
    with pytest.raises(TrainerError, match="assign must hold different numbers .* 0 to 5"):
        dataclasses.replace(SMALL, assign=assign)


def test_crops_are_parsed() -> None:
    kinds = crops.parse("2x160+4x96+1x32", ((0.2, 1.0), (0.1, 0.2), (0.05, 0.1)))
    assert [(k.count, k.size, k.area) for k in kinds][2] == (1, 32, (0.05, 0.1))
    assert "+".join(map(str, kinds)) == "2x160+4x96+1x32"


def codes_of(scores: Tensor, settings) -> Tensor:
    """The Sinkhorn by its formula, [B, K]."""
    codes = (scores / settings.epsilon).exp()
    for _ in range(settings.iterations):
        codes = codes / codes.sum(0)
        codes = codes / codes.sum(1, keepdim=True)
    return codes


@pytest.mark.parametrize("assign", [(1,), (5, 0), (2, 3, 4)])
def test_any_crops_may_be_assign_crops(assign: tuple[int, ...], tmp_path: Path) -> None:
    """Against the formula: crop v predicts the codes of each assign crop but itself."""
    settings = dataclasses.replace(SMALL, dtype="float64", assign=assign, queue_length=128)
    trainer, features, loss = first_loss(settings, tmp_path)
    scores = (features @ trainer.model.prototypes.weight.T).detach()
    terms = []
    for i in assign:
        codes = codes_of(scores[i], settings)
        for v in range(6):
            if v != i:
                log_p = functional.log_softmax(scores[v] / settings.temperature, 1)
                terms.append(-(codes * log_p).sum(1).mean())
    torch.testing.assert_close(loss.detach(), torch.stack(terms).mean(), rtol=1e-9, atol=1e-9)
    trainer.end_step(trainer.assigned(features), trainer.loader.rows(0, 0))
    assert trainer.objective.queue is not None
    assert trainer.objective.queue.storage.shape[0] == len(assign)


def test_the_loss_of_several_heads_is_their_mean(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, heads=3, dtype="float64")
    trainer, features, loss = first_loss(settings, tmp_path)
    loss.backward()
    gradients = [head.weight.grad for head in trainer.model.prototype_heads]
    single = Trainer(dataclasses.replace(settings, heads=1), trainer.dataset, tmp_path)
    losses = []
    for head in trainer.model.prototype_heads:
        single.model.prototypes.load_state_dict(head.state_dict())
        losses.append(single.objective.loss(features.detach(), None)[0])
        losses[-1].backward()
    assert len({float(x.detach()) for x in losses}) == 3
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(gradients) * 3, single.model.prototypes.weight.grad)


def test_hard_codes_are_the_largest(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, hard_codes=True, dtype="float64")
    trainer, features, loss = first_loss(settings, tmp_path)
    scores = (features @ trainer.model.prototypes.weight.T).detach()
    terms = []
    for i in (0, 1):
        codes = codes_of(scores[i], settings)
        for v in range(6):
            if v != i:
                terms.append(functional.cross_entropy(scores[v] / 0.1, codes.argmax(1)))
    torch.testing.assert_close(loss.detach(), torch.stack(terms).mean(), rtol=1e-9, atol=1e-9)


def test_the_loss_may_round_its_products(tmp_path: Path) -> None:
    exact = first_loss(SMALL, tmp_path)[2]
    rounded = first_loss(dataclasses.replace(SMALL, precision="bfloat16"), tmp_path)[2]
    assert 0 < abs(float(exact.detach() - rounded.detach())) < 2e-2
    with pytest.raises(TrainerError, match="precision must be float32 where dtype is float64"):
        dataclasses.replace(SMALL, precision="bfloat16", dtype="float64")


def test_heads_survive_a_checkpoint(tmp_path: Path) -> None:
    first = Trainer(dataclasses.replace(SMALL, heads=2), data.load(SMALL), tmp_path)
    nn.init.ones_(first.model.other_prototypes[0].weight)
    first.save()
    second = Trainer(first.config, first.dataset, tmp_path)
    second.restore()
    assert float(second.model.other_prototypes[0].weight.detach().min()) == 1


def test_rates_scale_with_the_batch() -> None:
    settings = dataclasses.replace(
        SMALL, learning_rate=0.6, rate_images=256, batch_size=64, warmup=0.5, warmup_rate=0.5
    )
    assert optim.peak(settings) == pytest.approx(0.15)
    rates = [optim.learning_rate(step, 100, settings) for step in (0, 50)]
    assert rates[0] == pytest.approx(0.15 * (0.5 + 0.5 / 51))
    assert rates[1] == pytest.approx(0.15)
    whole = dataclasses.replace(settings, effective_batch=512)
    assert optim.peak(whole) == pytest.approx(1.2)


def test_the_queue_may_start_by_epoch(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, epochs=3, queue_length=128, queue_epoch=1)
    trainer = Trainer(settings, data.load(settings), tmp_path)
    features = torch.zeros(2, 128, settings.feature_dim)
    steps = trainer.loader.steps
    trainer.objective.end_step(steps - 1, features, torch.arange(128))
    assert trainer.objective.queue.rows() is None
    trainer.objective.end_step(steps, features, torch.arange(128))
    assert trainer.objective.queue.rows().shape[1] == 128


def test_neighbours_are_asked_while_a_run_trains(tmp_path: Path) -> None:
    """Every second epoch; the run is what it would be without."""
    settings = dataclasses.replace(SMALL, epochs=3, log_every=5)
    plain = trained(settings, tmp_path)
    asked = trained(dataclasses.replace(settings, knn_every=2), tmp_path)
    found = [line for line in read(tmp_path) if "knn20" in line]
    assert [(line["step"], line["epoch"]) for line in found] == [(2 * asked.loader.steps, 2)]
    assert 20 < found[0]["knn20"] <= 100
    for x, y in zip(plain.model.parameters(), asked.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_a_stop_in_the_last_step_ends_the_run_as_it_would_have_ended(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, data.load(SMALL), tmp_path)
    step = trainer._train_step

    def stopping_step(*batch):
        if trainer.step == trainer.num_steps - 1:
            trainer.stop.ask()
        return step(*batch)

    trainer._train_step = stopping_step
    assert trainer.train(None)
