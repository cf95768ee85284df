"""Crops, heads, networks and methods beside those of the demo."""

import dataclasses
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gloo import run_ranks
from swav_trainer import config, crops, data, optim
from swav_trainer.build import build_model
from swav_trainer.deepcluster import UNSEEN, spherical_kmeans
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.evaluation import features_of, few_labels
from swav_trainer.log import Log, read
from swav_trainer.model import Model
from swav_trainer.settings import load_preset
from torch import Tensor, nn
from torch.nn import functional

SMALL = dataclasses.replace(load_preset("digits"), epochs=1, width=4, log_every=1)


def trained(settings, folder: Path) -> Trainer:
    """A whole run."""
    trainer = Trainer(settings, data.load(settings), folder)
    with Log(folder, 0, trainer.num_steps, trainer.loader.steps, 1) as log:
        assert trainer.train(log)
    return trainer


def first_loss(settings, folder: Path) -> tuple[Trainer, Tensor, Tensor]:
    """The first step's crops' features and loss, at the first weights."""
    trainer = Trainer(settings, data.load(settings), folder)
    trainer.model.train()
    trainer.begin_step()
    features = trainer.project(trainer.network, next(trainer.loader.batches(0)))
    return trainer, features, trainer.objective.loss(features, trainer.loader.rows(0, 0))[0]


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
    assert len({float(x) for x in losses}) == 3
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


def gradients(settings, images: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Model(settings, 3).double().train()
    torch.manual_seed(1)  # of dropout
    model(images).square().sum(0)[::2].sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], model.state_dict()


def of_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("arch", ["small", "resnet18", "vit_s16", "yours"])
def test_recomputing_changes_nothing(arch: str) -> None:
    """Neither gradients nor batch norms' statistics, which see each sample once."""
    settings = dataclasses.replace(
        load_preset("folder"), arch="small" if arch == "yours" else arch, hidden_dim=8,
        crops="2x32",
        model=f"{__name__}:of_dropout" if arch == "yours" else "", areas=((0.5, 1),),
    )  # fmt: skip
    images = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()]
    kept, state = gradients(settings, images)
    again, state_again = gradients(dataclasses.replace(settings, recompute=True), images)
    assert len(kept) > 5
    for x, y in zip([*kept, *state.values()], [*again, *state_again.values()], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_recomputing_keeps_less(tmp_path: Path) -> None:
    def held(recompute: bool) -> int:
        settings = dataclasses.replace(
            load_preset("folder"), arch="vit_s16", recompute=recompute, crops="2x32",
            areas=((0.5, 1),),
        )  # fmt: skip
        model, saved = Model(settings, 3).train(), []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel() * (tensor.grad_fn is not None))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model([torch.randn(8, 3, 32, 32)])
        return sum(saved)

    assert held(True) < held(False) / 3


def test_a_transformer_sees_crops_of_other_sizes() -> None:
    settings = dataclasses.replace(
        load_preset("folder"), arch="vit_s16", crops="2x64+1x32", areas=((0.5, 1), (0.1, 0.5))
    )
    model = Model(settings, 3).eval()
    names = set(model.backbone.state_dict())  # timm's
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.attn.qkv.bias"} <= names
    assert sum(p.numel() for p in model.backbone.parameters()) == pytest.approx(21.6e6, rel=0.01)
    images = torch.randn(2, 3, 64, 64)
    assert model([images, images[..., :32, :32]]).shape == (4, settings.feature_dim)
    # a place is told from another one
    swapped = torch.cat([images[..., 16:32], images[..., :16], images[..., 32:]], 3)
    assert not torch.allclose(model.backbone(images), model.backbone(swapped), atol=1e-4)
    with pytest.raises(TrainerError, match="patches of 16 pixels, crops 2x12 are smaller"):
        Model(dataclasses.replace(settings, crops="2x12", areas=((0.5, 1),)), 3)


def test_networks_of_libraries_lose_their_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, torchvision, models = (ModuleType(x) for x in ("timm", "torchvision", "models"))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 1000)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)))

    asked = []
    timm.create_model = lambda name, num_classes: asked.append((name, num_classes)) or _Pool()
    models.get_model = lambda name, weights: asked.append((name, weights)) or Net()
    for name, module in {
        "timm": timm, "torchvision": torchvision, "torchvision.models": models,
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    for model in ("timm:tiny", "torchvision:tiny"):
        settings = dataclasses.replace(load_preset("folder"), model=model)
        assert Model(settings, 3).head[0].in_features == 3
    assert asked == [("tiny", 0), ("tiny", None)]


def test_a_library_that_does_not_import_is_named() -> None:
    with pytest.raises(TrainerError, match="no_such_library cannot be imported .*PYTHONPATH"):
        Model(dataclasses.replace(SMALL, model="no_such_library:net"), 1)


def test_a_compiled_backbone_learns_the_same(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, dtype="float64", crops="2x16", areas=((0.5, 1),))
    compiled = dataclasses.replace(settings, compile=True)
    trainer, _, loss = first_loss(compiled, tmp_path)
    assert trainer.model.backbone._compiled_call_impl is not None
    torch.testing.assert_close(loss, first_loss(settings, tmp_path)[2], rtol=1e-9, atol=1e-9)


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


def test_a_stop_in_the_last_step_ends_the_run_as_it_would_have_ended(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, data.load(SMALL), tmp_path)
    step = trainer._train_step

    def stopping_step(*batch):
        if trainer.step == trainer.num_steps - 1:
            trainer.stop.ask()
        return step(*batch)

    trainer._train_step = stopping_step
    assert trainer.train(None)


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
