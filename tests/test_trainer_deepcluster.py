"""DeepCluster-v2: clusters, loss, resuming, parts of a batch."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from gloo import run_ranks
from small_runs import SMALL, trained
from swav_trainer import config, data
from swav_trainer.build import build_model
from swav_trainer.deepcluster import UNSEEN, spherical_kmeans
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.evaluation import features_of, few_labels
from swav_trainer.log import read
from swav_trainer.report import View, tables, write
from swav_trainer.table import scores_table
from torch import Tensor, nn
from torch.nn import functional

DEEPCLUSTER = dataclasses.replace(SMALL, method="deepcluster", heads=3, epochs=4, num_prototypes=30)


def test_spherical_kmeans_finds_what_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = functional.normalize(torch.randn(5, 16, generator=generator), dim=1)
    wanted = torch.randint(5, (500,), generator=generator)
    noise = 0.1 * torch.randn(500, 16, generator=generator)
    features = functional.normalize(centres[wanted] + noise, dim=1)
    first = torch.stack([features[wanted == k][0] for k in range(5)])
    centroids, nearest = spherical_kmeans(features, torch.cat([first, -first[:1]]))
    assert torch.equal(nearest, wanted)
    torch.testing.assert_close(centroids[5], -first[0])  # nothing is near it: it stays
    means = torch.stack([features[wanted == k].mean(0) for k in range(5)])
    torch.testing.assert_close(centroids[:5], functional.normalize(means, dim=1))


def test_deepcluster_predicts_the_clusters_of_the_epoch_before(tmp_path: Path) -> None:
    trainer = Trainer(DEEPCLUSTER, data.load(DEEPCLUSTER), tmp_path)
    trainer.model.train()
    trainer.objective.begin_epoch(trainer, 0)
    objective = trainer.objective
    clusters = objective.clusters
    seen = trainer.loader.steps * DEEPCLUSTER.batch_size
    assert int((clusters[0] != UNSEEN).sum()) == seen
    assert len({tuple(x.tolist()) for x in clusters}) == 3  # heads differ
    for head, crop in enumerate((0, 1, 0)):
        weight = trainer.model.prototype_heads[head].weight
        nearest = (objective.features[crop] @ weight.T).argmax(1)
        assert torch.equal(clusters[head, objective.rows], nearest)
    features = trainer.project(trainer.network, next(trainer.loader.batches(0)))
    rows = trainer.loader.rows(0, 0)
    loss, stats = objective.loss(features, rows)
    terms = [
        functional.cross_entropy(
            (crop @ head.weight.T) / DEEPCLUSTER.temperature, clusters[i, rows]
        )
        for i, head in enumerate(trainer.model.prototype_heads)
        for crop in features
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert float(stats["loss_minus_log_k"]) == pytest.approx(float(loss) - math.log(30), abs=1e-5)


def test_deepcluster_learns(tmp_path: Path) -> None:
    settings = dataclasses.replace(DEEPCLUSTER, epochs=12, width=8)
    trainer = trained(settings, tmp_path)
    labels = trainer.dataset.train.labels, trainer.dataset.test.labels
    untrained = build_model(settings, 1, torch.device("cpu"))
    learned, blank = (
        few_labels(features_of(settings, trainer.dataset, model.backbone), labels, 1, 0)
        for model in (trainer.model, untrained)
    )
    assert learned > blank + 10, (learned, blank)
    usage = [line["usage_entropy"] for line in read(tmp_path)]
    assert usage[-1] > 0.8


def test_deepcluster_resumes_exactly(tmp_path: Path) -> None:
    whole = trained(DEEPCLUSTER, tmp_path)
    folder = tmp_path / "stopped"
    folder.mkdir()
    first = Trainer(DEEPCLUSTER, whole.dataset, folder)
    step = first._train_step

    def stopping_step(*batch):
        if first.step == 16:  # within the second epoch
            first.stop.ask()
        return step(*batch)

    first._train_step = stopping_step
    assert not first.train(None)
    second = Trainer(DEEPCLUSTER, whole.dataset, folder)
    second.restore()
    assert second.train(None)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def rows_at_the_end(rank: int, settings: config.Config, folder: Path) -> Tensor:
    trainer = Trainer(settings, data.load(settings), folder)
    trainer.restore()
    assert trainer.step == 16
    trainer.train(None)
    return trainer.objective.rows


def test_deepcluster_goes_on_with_more_processes_within_an_epoch(tmp_path: Path) -> None:
    """No image of the epoch is lost, and none is there twice."""
    settings = dataclasses.replace(DEEPCLUSTER, epochs=2)
    first = Trainer(settings, data.load(settings), tmp_path)
    step = first._train_step

    def stopping_step(*batch):
        if first.step == 15:
            first.stop.ask()
        return step(*batch)

    first._train_step = stopping_step
    assert not first.train(None)
    (tmp_path / "ranks").mkdir()
    rows = torch.cat(run_ranks(2, tmp_path / "ranks", rows_at_the_end, settings, tmp_path))
    assert len(rows.unique()) == len(rows) == first.loader.steps * settings.batch_size


def test_deepcluster_refuses_what_it_would_leave_aside() -> None:
    for change in ({"queue_length": 256}, {"hard_codes": True}, {"assignment": "softmax"}):
        (name,) = change
        with pytest.raises(TrainerError, match=f"{name} must be .* where method is deepcluster"):
            dataclasses.replace(DEEPCLUSTER, **change)


def test_deepcluster_in_parts_learns_the_same(tmp_path: Path) -> None:
    """Nothing of its loss depends on the batch, batch norms aside."""
    settings = dataclasses.replace(
        DEEPCLUSTER, dtype="float64", batch_size=64, head_batch_norm=False
    )
    trainers = [
        Trainer(dataclasses.replace(settings, batch_size=size, effective_batch=64),
                data.load(settings), tmp_path)
        for size in (64, 32)
    ]  # fmt: skip
    for trainer in trainers:
        trainer.model.head[1] = nn.Identity()
        for module in list(trainer.model.backbone.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
        trainer.model.train()
        next(trainer._steps(0, 0))
    one, two = ([p.grad for p in trainer.model.parameters()] for trainer in trainers)
    assert [x is None for x in one] == [x is None for x in two]
    pairs = [(x, y) for x, y in zip(one, two, strict=True) if x is not None]
    assert len(pairs) > 5
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def test_deepcluster_wants_images_enough(tmp_path: Path) -> None:
    settings = dataclasses.replace(DEEPCLUSTER, num_prototypes=5000)
    trainer = Trainer(settings, data.load(settings), tmp_path)
    with pytest.raises(TrainerError, match=r"5000 clusters of the 1408 images.*--num-prototypes"):
        trainer.train(None)


def test_titles_name_the_method(tmp_path: Path) -> None:
    swav = SMALL
    clustered = dataclasses.replace(swav, method="deepcluster")
    figures = dict.fromkeys(tables.FIGURES, 50.0)
    scores = dict.fromkeys(tables.KINDS, figures)
    views = [View("run", config, [], scores, 1.0, {}) for config in (swav, clustered)]
    seen = []
    for shown in (views[:1], views[1:], views):
        write(tmp_path / "page.html", shown)
        text = (tmp_path / "page.html").read_text()
        seen.append(re.search("<title>(.*)</title>", text)[1])
        assert ("<th>SwAV</th>" in text) == (views[0] in shown)
        assert ("<th>DeepCluster-v2</th>" in text) == (views[1] in shown)
    assert seen == ["SwAV on digits", "DeepCluster-v2 on digits",
                    "2 runs of SwAV and DeepCluster-v2"]  # fmt: skip
    rows = scores_table(clustered, scores).columns[0]._cells
    assert rows == ["DeepCluster-v2", "raw pixels", "same network, untrained"]
