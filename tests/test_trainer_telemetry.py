"""Telemetry against what can be counted, the alarms it raises, and that processes agree on it."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from gloo import run_ranks
from swav_trainer import alarm, clock, config, data, ranks, telemetry
from swav_trainer.engine import Trainer
from swav_trainer.log import Log, read
from swav_trainer.settings import load_preset

import swav_kernels as sk

DIGITS = load_preset("digits")
MACHINE = {"data_share", "network_share", "loss_share", "peak_memory"}
NAMES = {"feature_rank", "dead_prototypes", "duplicate_prototypes", *MACHINE}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random points on the sphere."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def test_the_rank_is_the_number_of_directions_in_use() -> None:
    for used in (1, 3, 16):
        features = torch.eye(16)[:used].repeat(4, 1).view(2, -1, 16)
        assert telemetry.feature_rank(features) == pytest.approx(used, rel=1e-6)
    features = unit(2, 50, 8)
    singular = torch.linalg.svdvals(features.double().view(100, 8))
    shares = singular / singular.sum()
    wanted = float((-shares * shares.log()).sum().exp())
    assert telemetry.feature_rank(features) == pytest.approx(wanted, rel=1e-9)
    assert telemetry.feature_rank(torch.zeros(2, 3, 4)) == 1.0  # nothing is spread
    assert math.isnan(telemetry.feature_rank(torch.full((2, 3, 4), math.nan)))


def test_equal_prototypes_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(telemetry, "CHUNK", 5)  # does not divide 12
    prototypes = torch.cat([torch.eye(16)[:10], torch.eye(16)[2:3], 7 * torch.eye(16)[4:5]])
    assert telemetry.duplicate_prototypes(prototypes) == pytest.approx(4 / 12)
    near = torch.tensor([[1.0, 0.0], [0.951, math.sqrt(1 - 0.951**2)], [-1.0, 0.0]])
    assert telemetry.duplicate_prototypes(near) == pytest.approx(2 / 3)
    near[1] = torch.tensor([0.949, math.sqrt(1 - 0.949**2)])
    assert telemetry.duplicate_prototypes(near) == 0


def test_a_prototype_is_dead_when_ten_samples_a_prototype_passed_it_by() -> None:
    prototypes = torch.eye(4)
    fill = telemetry.Fill(4)
    three = torch.eye(4)[:3].repeat(2, 1).view(2, 3, 4)  # 6 samples, none of the last
    shares = [fill.see(three, prototypes) for _ in range(7)]
    assert shares == [0.0] * 6 + [0.25]  # 42 samples are more than 40
    assert fill.see(torch.eye(4).view(1, 4, 4), prototypes) == 0.0  # it is back


def test_the_queue_tells_its_age_and_its_fit() -> None:
    queue = sk.FeatureQueue(8, 4, 2)
    prototypes = torch.eye(4)
    features = torch.eye(4)[:2].repeat(2, 1, 1)  # [2, 2, 4]: each is a prototype
    assert telemetry.queue_age(queue, 2) == 0
    assert math.isnan(telemetry.queue_fit(queue, features, prototypes))
    old = torch.tensor([0.6, 0.8, 0.0, 0.0]).expand(2, 2, 4)
    queue.update(old)
    assert telemetry.queue_age(queue, 2) == 1
    for _ in range(3):
        queue.update(features)
    assert telemetry.queue_age(queue, 2) == 4
    assert telemetry.queue_fit(queue, features, prototypes) == pytest.approx(0.8)
    queue.update(features)  # the old rows are gone
    assert telemetry.queue_age(queue, 2) == 4
    assert telemetry.queue_fit(queue, features, prototypes) == pytest.approx(1.0)


def test_the_clock_tells_where_the_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((10.0, 11.0, 12.0, 14.0, 15.0, 17.0, 18.0, 20.0))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    watch = clock.Clock(torch.device("cpu"))  # at 10
    with watch.part("network"):
        pass  # from 11 to 12
    assert watch.shares(waited=3.0) == {"network_share": 0.25, "data_share": 0.75}  # at 14
    with watch.part("loss"):
        pass  # from 15 to 17
    assert watch.shares(waited=3.0) == {"loss_share": 0.5, "data_share": 0.0}  # at 18
    assert watch.shares(waited=4.0) == {"data_share": 0.5}  # at 20


def train(settings: config.Config, folder: Path) -> Trainer:
    trainer = Trainer(settings, data.load(settings), folder)
    if not ranks.is_main():
        trainer.train(None)
        return trainer
    with Log(folder, 0, trainer.num_steps, trainer.loader.steps, settings.log_every) as log:
        assert trainer.train(log)
    return trainer


def told(folder: Path) -> list[dict[str, float]]:
    return [line for line in read(folder) if "loss" in line]


SHORT = dataclasses.replace(
    DIGITS, epochs=1, width=2, dtype="float64", log_every=4, queue_length=256, queue_start=0.3
)


def run_of_rank(_: int, folder: Path) -> list[int]:
    return train(SHORT, folder).probe.fill.idle.tolist()


def test_processes_tell_what_one_tells(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    idle = train(SHORT, alone).probe.fill.idle.tolist()
    assert run_ranks(2, tmp_path, run_of_rank, shared) == [idle, idle]
    wanted, got = told(alone), told(shared)
    assert [line["step"] for line in wanted] == [4, 8, 11]  # log_every, and the last one
    for line in wanted:
        assert set(line) >= NAMES
        assert line["feature_rank"] > 1
        shares = [line[f"{part}_share"] for part in ("data", "network", "loss")]
        assert min(shares) > 0
        assert 0.5 < sum(shares) < 1
        assert line["peak_memory"] > 50
    assert [line["queue_age"] for line in wanted] == [0, 2, 2]
    assert wanted[0]["queue_fit"] is None
    for ours, theirs in zip(wanted, got, strict=True):
        for name in (NAMES | {"queue_age"}) - MACHINE:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_what_is_dead_is_known_after_a_stop(tmp_path: Path) -> None:
    first = train(SHORT, tmp_path)
    assert max(first.probe.fill.idle) > 0
    again = Trainer(SHORT, data.load(SHORT), tmp_path)
    again.restore()
    assert torch.equal(again.probe.fill.idle, first.probe.fill.idle)


# --- alarms ---------------------------------------------------------------------------------------


def raised(settings: config.Config, steps: int = 300, **stats: float) -> list[alarm.Alarm]:
    """Alarms of a long run with the same telemetry at every step."""
    watch = alarm.Watch(settings)
    watch.begin()
    healthy = {"loss": 2.0, "usage_entropy": 0.95, "mean_max_code": 0.5} | stats
    for step in range(1, steps):
        watch.see(step, healthy["loss"], healthy)
    return watch.raised


QUEUE = dataclasses.replace(DIGITS, queue_length=1280)


@pytest.mark.parametrize(
    ("settings", "stats", "diagnosis", "cause", "remedy"),
    [
        (DIGITS, {"dead_prototypes": 0.5}, "dead prototypes", "50% of the 60",
         "Lower --num-prototypes, for example to 30"),
        (DIGITS, {"duplicate_prototypes": 0.4}, "duplicate prototypes", "40% of the 60",
         "Lower --epsilon, for example to 0.015"),
        (QUEUE, {"queue_age": 80.0, "queue_fit": 0.97}, "stale queue", "80 steps ago",
         "Shorten --queue-length, for example to 640"),
        (QUEUE, {"queue_age": 10.0, "queue_fit": 0.7}, "stale queue", "0.70 times as well",
         "Raise --queue-start"),
    ],
)  # fmt: skip
def test_each_alarm_names_cause_and_remedy_once(
    settings: config.Config, stats: dict[str, float], diagnosis: str, cause: str, remedy: str
) -> None:
    (found,) = raised(settings, **stats)
    assert found.diagnosis == diagnosis
    assert cause in found.cause
    assert remedy in found.remedy
    assert found.step == alarm.GRACE
    assert raised(settings, steps=alarm.GRACE, **stats) == []  # too early to say


def test_a_healthy_run_raises_none() -> None:
    healthy = {
        "dead_prototypes": 0.1, "duplicate_prototypes": 0.05, "queue_age": 15.0, "queue_fit": 0.95
    }  # fmt: skip
    assert raised(QUEUE, **healthy) == []
    assert raised(QUEUE, queue_fit=math.nan) == []  # an empty queue


def test_one_trouble_is_told_by_one_alarm() -> None:
    collapse = raised(QUEUE, usage_entropy=0.1, dead_prototypes=0.9, duplicate_prototypes=0.9,
                      queue_fit=0.5)  # fmt: skip
    assert [found.diagnosis for found in collapse] == ["collapse"]
    stale = raised(QUEUE, dead_prototypes=0.5, queue_fit=0.5)
    assert [found.diagnosis for found in stale] == ["stale queue"]


def test_a_batch_far_below_k_is_told_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(SHORT, num_prototypes=3000, queue_length=0, width=2)
    train(settings, tmp_path)
    (line,) = (line for line in read(tmp_path) if "alarm" in line)
    assert line["step"] == 0
    assert line["alarm"]["diagnosis"] == "batch far below K"
    assert "balances 128 samples over 3000 prototypes" in line["alarm"]["cause"]
    assert "--queue-length" in line["alarm"]["remedy"]
    assert "alarm step 0: batch far below K" in capsys.readouterr().out
    for enough in ({"queue_length": 3840}, {"effective_batch": 400}, {"num_prototypes": 1000}):
        assert alarm.Watch(dataclasses.replace(settings, **enough)).begin() == []
    again = Trainer(settings, data.load(settings), tmp_path)
    again.restore()
    assert again.watch.begin() == []  # told once


def test_a_queue_that_starts_too_early_is_told(tmp_path: Path) -> None:
    # of the first seeds the one that stays farthest from a collapse, which would be told first:
    # rounding differs between processors, and a run follows it
    settings = dataclasses.replace(DIGITS, epochs=12, queue_length=1280, queue_start=0.0, seed=3)
    trainer = train(settings, tmp_path)
    assert [found.diagnosis for found in trainer.watch.raised] == ["stale queue"]
