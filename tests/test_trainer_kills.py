"""Killed at any moment, a run that goes on ends as the one that was left alone, bit for bit."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from depth import count
from faults import CUT, Point, child, meet
from pictures import pictures
from swav_trainer import checkpoint, cli, data, evaluation, saved
from swav_trainer.config import Config
from swav_trainer.engine import Trainer
from swav_trainer.log import METRICS, Log, read
from swav_trainer.settings import FILE, load_preset, save
from test_trainer_ranks import small

PLAIN = dataclasses.replace(
    load_preset("digits"), epochs=3, batch_size=64, width=4, crops="2x12+1x8", freeze_steps=3,
    areas=((0.3, 1.0), (0.1, 0.3)), queue_length=128, queue_start=0.4, log_every=1, knn_every=1,
    checkpoint_every=1,
)  # fmt: skip
STEPS, QUEUE = 10, 12  # of an epoch; the step from which the queue is filled
FILES = dataclasses.replace(
    load_preset("folder"), epochs=3, batch_size=8, arch="small", width=4, crops="2x16+1x8",
    hidden_dim=16, feature_dim=16, num_prototypes=6, queue_length=16, queue_start=0.4,
    workers=2, log_every=1, checkpoint_every=1,
)  # fmt: skip
ACCUMULATED = dataclasses.replace(PLAIN, effective_batch=192, batch_size=64, queue_length=192)
CLUSTERED = dataclasses.replace(PLAIN, method="deepcluster", queue_length=0, knn_every=0)
# of a line of metrics, and of a checkpoint's state, what no two runs have alike
TIMES = ("seconds", "data_share", "network_share", "loss_share", "peak_memory")

TRAINER = "swav_trainer.engine:Trainer"
RENAME, FLUSH = "pathlib:Path.replace", "os:fsync"
# A rename and two flushes begin the metrics; the first checkpoint takes a rename and two flushes,
# and each one behind it two renames: the one before it steps aside.
STEP = [Point(f"{TRAINER}.{name}", 0, behind)
        for name, behind in (("begin_step", True), ("project", True), ("learn", False),
                             ("learn", True), ("end_step", True), ("_observe", False))]  # fmt: skip
FIXED = [
    Point(RENAME, 4, behind=True),  # the second checkpoint has its name, which is not flushed
    Point("swav_trainer.engine:online_knn", 2),
    Point(RENAME, 3, behind=True),  # no checkpoint has the name of the newest one
    Point(RENAME, 2), Point(RENAME, 2, behind=True), Point(RENAME, 3),
    Point(FLUSH, 3), Point(FLUSH, 4, behind=True), Point(FLUSH, 5), Point(FLUSH, 8, behind=True),
    Point("swav_trainer.checkpoint:to_bytes", 2, cut=0),
    Point("swav_trainer.checkpoint:to_bytes", 2, cut=20_000),
    Point("swav_trainer.checkpoint:to_bytes", 3, cut=1),
    Point("swav_trainer.log:Log._write", 14), Point("swav_trainer.log:Log._write", 14, True),
    Point("swav_trainer.engine:online_knn", 3, behind=True),
    Point("swav_trainer.log:Log.__init__", 1),
    Point("swav_kernels.modules:FeatureQueue.update", 2),
    Point("swav_kernels.modules:FeatureQueue.update", 3, behind=True),
]  # fmt: skip


def points(number: int) -> list[Point]:
    """The first ones of a list: fixed ones, and calls in steps that a seed has drawn."""
    drawn = random.Random(0)
    steps = [
        dataclasses.replace(point, hit=drawn.randrange(first, first + STEPS))
        for first in (1, STEPS + 1)
        for point in STEP
    ]
    return [steps[3 + len(STEP)], *FIXED, *steps][:number]


def go_on(settings: Config, folder: Path, point: Point | None = None) -> None:
    """Begin or resume a run, as `swav train` does it, and meet the point."""
    if point is not None:
        meet(point)
    dataset = data.load(settings) if settings.folder else small(settings)
    trainer = Trainer(settings, dataset, folder)
    if any((folder / name).exists() for name in saved.NAMES):
        assert trainer.restore() == "" or not (folder / checkpoint.NAME).exists()
    with Log(folder, trainer.step, trainer.num_steps, trainer.loader.steps, 1) as log:
        assert trainer.train(log)


def left_behind(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[Any]]:
    """What a run has come to: tensors, state and metrics, without times."""
    tensors, state, problem = checkpoint.load(folder / checkpoint.NAME)
    assert problem == ""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read(folder)]
    return tensors, {k: v for k, v in state.items() if k not in TIMES}, lines


def assert_same(one: Path, other: Path) -> None:
    """Both runs have come to the same, and nothing half written lies about."""
    (tensors, *rest), (wanted, *wanted_rest) = left_behind(one), left_behind(other)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor), name
    assert rest == wanted_rest
    assert {x.name for x in one.iterdir()} <= {checkpoint.NAME, checkpoint.PREVIOUS, METRICS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("images"), 60)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Any:
    """Runs that were left alone, each made when it is asked for."""
    made: dict[str, tuple[Config, Path]] = {}
    kinds = {
        "plain": PLAIN, "accumulated": ACCUMULATED, "clustered": CLUSTERED,
        "threads": dataclasses.replace(FILES, data=f"folder:{images}"),
        "processes": dataclasses.replace(FILES, data=f"folder:{images}", loader="processes"),
    }  # fmt: skip

    def run(kind: str) -> tuple[Config, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            go_on(kinds[kind], folder)  # here, so that children find every library imported
            made[kind] = kinds[kind], folder
        return made[kind]

    return run


@pytest.mark.parametrize("point", points(count(3, 31)), ids=str)
def test_a_killed_run_ends_as_if_it_had_not_been(alone: Any, point: Point, tmp_path: Path) -> None:
    settings, whole = alone("plain")
    assert len(read(whole)) == 3 * STEPS + 3
    assert child(go_on, settings, tmp_path, point) == (-9 if point.cut is None else CUT)
    assert child(go_on, settings, tmp_path) == 0
    assert_same(tmp_path, whole)


OTHERS = [
    ("accumulated", Point("swav_trainer.accumulation:_embed", 5, behind=True)),
    ("processes", Point(f"{TRAINER}.learn", 17)),
    ("threads", Point(f"{TRAINER}.learn", 17)),
    ("threads", Point("swav_trainer.loader:Loader._finish", 14)),
    ("processes", Point("swav_trainer.loader:Loader._finish", 14)),
    ("processes", Point(RENAME, 4, behind=True)),
    ("accumulated", Point(f"{TRAINER}.learn", 14)),  # some parts of a step have been learned
    ("accumulated", Point("swav_trainer.swav:SwAV.telemetry", 4)),
    ("clustered", Point("swav_trainer.deepcluster:DeepCluster.begin_epoch", 2)),
    ("clustered", Point("swav_trainer.deepcluster:DeepCluster.begin_epoch", 3, behind=True)),
    ("clustered", Point(f"{TRAINER}.end_step", 15)),
]


@pytest.mark.parametrize(("kind", "point"), OTHERS[: count(2, len(OTHERS))], ids=str)
def test_workers_parts_of_batches_and_clusters_go_on_too(
    alone: Any, kind: str, point: Point, tmp_path: Path
) -> None:
    settings, whole = alone(kind)
    assert child(go_on, settings, tmp_path, point) == -9
    assert child(go_on, settings, tmp_path) == 0
    assert_same(tmp_path, whole)


def test_a_run_killed_at_one_point_after_the_other(alone: Any, tmp_path: Path) -> None:
    """What one kill has left is what the next one meets."""
    settings, whole = alone("plain")
    for point in (Point(f"{TRAINER}.learn", 13), *points(count(2, 31))):
        # with less left to do, a later point may not be met any more
        assert child(go_on, settings, tmp_path, point) in (-9, CUT, 0)
    assert child(go_on, settings, tmp_path) == 0
    assert_same(tmp_path, whole)


def resume(folder: Path, point: Point | None = None) -> None:
    """`swav train --resume`, to the end."""
    if point is not None:
        meet(point)
    raise SystemExit(cli.main(["train", "--resume", str(folder)]))


ENDS = [
    Point("swav_trainer.evaluation:features_of", 2, behind=True),
    Point("swav_trainer.durable:write", 3, behind=True),  # the report is there
    Point("swav_trainer.durable:write", 4),
    Point("swav_trainer.report.page:_asset", 2),
]


@pytest.mark.parametrize("point", ENDS[: count(1, len(ENDS))], ids=str)
def test_killed_in_its_evaluation_a_run_is_evaluated_again(point: Point, tmp_path: Path) -> None:
    settings = dataclasses.replace(PLAIN, epochs=1, knn_every=0)
    scores = []
    for name, met in (("whole", None), ("killed", point)):
        run = tmp_path / name
        run.mkdir()
        save(settings, run / FILE)
        trainer = Trainer(settings, data.load(settings), run)
        trainer.save()
        if met is not None:
            assert child(resume, run, met) == -9
            assert not (run / evaluation.FILE).exists()
        assert child(resume, run) == 0
        scores.append(json.loads((run / evaluation.FILE).read_text()))
        scores[-1].pop("seconds")
    assert scores[0] == scores[1]
