"""The protocols of the literature, each by itself: who wins, what is drawn, what is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo import run_ranks
from pictures import pictures
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC
from swav_trainer import checkpoint, cli, config, data, evaluation
from swav_trainer.build import build_model
from swav_trainer.errors import TrainerError
from swav_trainer.protocols import crops, figures, finetune, neighbours, online, probe, subset, svm
from swav_trainer.settings import FILE, load, load_preset

DIGITS = dataclasses.replace(load_preset("digits"), width=4)


def blobs(count: int, num_classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features about one centre a class, with labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % num_classes
    return centres[labels] + 1.5 * torch.randn(count, 12, generator=generator), labels


# --- neighbours -----------------------------------------------------------------------------------


def votes_by_hand(train: Any, test: Any, count: int) -> float:
    """The vote in float64, one test image at a time."""
    bank, queries = (x.double().numpy() for x in (train[0], test[0]))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    right = 0
    for query, label in zip(queries, test[1].tolist(), strict=True):
        cosines = bank @ (query / np.linalg.norm(query))
        nearest = np.argsort(-cosines)[:count]
        votes = np.bincount(train[1].numpy()[nearest], np.exp(cosines[nearest] / 0.07), 7)
        right += int(votes.argmax() == label)
    return 100 * right / len(queries)


def test_neighbours_vote_as_counted_by_hand() -> None:
    train, test = blobs(150), blobs(301, seed=1)  # more test images than two chunks
    got = neighbours.accuracy(train, test, 7, (1, 5, 20, 200))  # the last: more than there are
    assert 20 < got[5] < 95
    for count, value in got.items():
        assert value == pytest.approx(votes_by_hand(train, test, count))


def vote_of_rank(rank: int, train: Any, test: Any) -> dict[int, float]:
    mine, of_test = (neighbours.share(len(part[1])) for part in (train, test))
    shared = train[0][mine.start : mine.stop], train[1][mine.start : mine.stop]
    return neighbours.accuracy(
        shared, (test[0][of_test.start : of_test.stop], test[1]), 7, (1, 20, 40)
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_vote_as_one_does(tmp_path: Path, world_size: int) -> None:
    train, test = blobs(101), blobs(140, seed=1)  # neither divides; a share is fewer than 40 rows
    wanted = neighbours.accuracy(train, test, 7, (1, 20, 40))
    for got in run_ranks(world_size, tmp_path, vote_of_rank, train, test):
        assert got == wanted


def online_of_rank(rank: int, settings: config.Config, backbone: torch.nn.Module) -> Any:
    dataset = data.load(settings)
    figure = online.online_knn(settings, dataset, backbone, 200, 101)
    return figure, online.knn(settings, dataset, backbone, (20,))[20]


def test_online_figure_is_of_a_part_and_the_same_for_any_number_of_processes(
    tmp_path: Path,
) -> None:
    settings = dataclasses.replace(DIGITS, batch_size=6)
    backbone = build_model(settings, 1, torch.device("cpu")).backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    wanted = online_of_rank(0, settings, backbone)
    assert backbone.training  # and no batch norm has learned
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    dataset = data.load(settings)
    features = evaluation.features_of(settings, dataset, backbone)
    labels = dataset.train.labels, dataset.test.labels
    assert wanted[1] == evaluation.knn(features, labels)
    # 101 images: their share of right ones is a whole number of them
    assert round(wanted[0] * 101 / 100, 6) == round(wanted[0] * 101 / 100)
    assert wanted[0] != wanted[1]
    assert online.online_knn(settings, dataset, backbone, 10**6, 10**6) == wanted[1]
    for got in run_ranks(2, tmp_path, online_of_rank, settings, backbone):
        assert got == wanted


def test_torchrun_shares_neighbours_and_nothing_else(digits_run: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
        str(20_000 + os.getpid() % 20_000), "-m", "swav_trainer", "eval", str(digits_run), "--knn",
        "--json-file", str(tmp_path / "two.json"),
    ]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("knn20 ") == 1
    assert (
        cli.main(["eval", str(digits_run), "--knn", "--json-file", str(tmp_path / "one.json")]) == 0
    )
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


# --- linear probe ---------------------------------------------------------------------------------


def one_probe(features: Any, labels: Any, rate: float, decay: float, epochs: int) -> Any:
    """The same by torch's own optimiser, one probe alone."""
    layer = torch.nn.Linear(features.shape[1], 7)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    batches = -(-len(features) // 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(epochs):
        for rows in probe.seeds.order(3, epoch, len(features)).split(256):
            loss = torch.nn.functional.cross_entropy(layer(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return layer


def test_probes_trained_at_once_are_those_trained_alone() -> None:
    features, labels = blobs(600)  # three batches, the last of 88
    rates, decays = torch.tensor([0.1, 0.01, 0.1]), torch.tensor([0.0, 1e-2, 0.1])
    weight, bias = probe.fit(features, labels, 7, (rates, decays), 3, 4)
    for i in range(3):
        layer = one_probe(features, labels, float(rates[i]), float(decays[i]), 4)
        torch.testing.assert_close(weight[i].T, layer.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias[i, 0], layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_probe_is_chosen_without_the_held_out_images() -> None:
    train, test = blobs(400), blobs(300, seed=1)
    found, chosen = probe.linear((train[0], test[0]), (train[1], test[1]), 7, 0, epochs=10)
    logistic = evaluation.linear((train[0], test[0]), (train[1], test[1]))
    assert abs(found["linear"] - logistic) < 5
    assert found["linear_top5"] > found["linear"]
    wrong = (test[1] + 1) % 7
    other, again = probe.linear((train[0], test[0]), (train[1], wrong), 7, 0, epochs=10)
    assert again == chosen
    assert other["linear"] < 30
    fit, choose = subset.hold_out(train[1], 0.2, 0)
    assert sorted([*fit.tolist(), *choose.tolist()]) == list(range(400))
    assert set(train[1][choose].tolist()) == set(range(7))


def test_a_probe_that_runs_away_is_not_chosen() -> None:
    labels = torch.zeros(10, dtype=torch.long)  # of which class 0 would be right by chance
    weights = torch.full((2, 4, 7), torch.nan), torch.zeros(2, 1, 7)
    weights[0][1] = 0
    assert probe._accuracies(weights, torch.randn(10, 4), labels).tolist() == [0.0, 1.0]


# --- few labels -----------------------------------------------------------------------------------


def test_subsets_are_balanced_seeded_and_hold_every_class() -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate((500, 300, 1))])
    rows = subset.percent(labels, 1, 0)
    assert labels[rows].bincount().tolist() == [3, 3, 1]  # 8 of 801, a third of them each
    assert torch.equal(rows, subset.percent(labels, 1, 0))
    assert not torch.equal(rows, subset.percent(labels, 1, 1))
    assert labels[subset.percent(labels, 0.01, 0)].bincount().tolist() == [1, 1, 1]
    draws = {tuple(subset.draw(labels, 4, 0, 4, number).tolist()) for number in range(5)}
    assert len(draws) == 5
    with pytest.raises(TrainerError, match="one a class, leave none to choose a probe"):
        subset.hold_out(torch.arange(5), 0.2, 0)


def machines_by_hand(train: Any, test: torch.Tensor, cost: float) -> np.ndarray:
    """Distances [M, 7] of a machine a class."""
    columns = []
    for label in range(7):
        machine = LinearSVC(C=cost, class_weight={True: 2, False: 1}, random_state=0, max_iter=2000)
        machine.fit(train[0].double().numpy(), (train[1] == label).numpy())
        columns.append(machine.decision_function(test.double().numpy()))
    return np.stack(columns, 1)


@pytest.mark.filterwarnings("ignore:Liblinear failed")
def test_svm_distances_are_those_of_one_machine_a_class_at_the_best_cost() -> None:
    train, test = blobs(70, seed=2), blobs(90, seed=3)
    scores = svm.decide(train[0], train[1], test[0], 8, 0)
    assert (scores[:, 7] < -1e300).all()  # a class without a label
    fits = [np.allclose(scores[:, :7], machines_by_hand(train, test[0], c)) for c in svm.COSTS]
    assert sum(fits) == 1
    by_hand = [
        average_precision_score(test[1] == label, scores[:, label].numpy()) for label in range(7)
    ]
    got = figures.mean_average_precision(scores, test[1])
    assert got == pytest.approx(100 * np.mean(by_hand))


@pytest.mark.filterwarnings("ignore:Liblinear failed")
def test_svm_takes_the_cost_that_does_well_on_other_images() -> None:
    generator = torch.Generator().manual_seed(5)
    parts = []
    for features, labels in (blobs(140, seed=2), blobs(200, seed=3)):
        # loud dimensions that tell nothing, which a low cost leaves in
        noise = 10 * torch.randn(len(features), 3, generator=generator)
        parts.append((torch.cat([features, noise], 1) / 10, labels))
    train, test = parts
    found = [
        figures.mean_average_precision(
            torch.from_numpy(machines_by_hand(train, test[0], cost)), test[1]
        )
        for cost in svm.COSTS
    ]
    scores = svm.decide(train[0], train[1], test[0], 7, 0)
    got = figures.mean_average_precision(scores, test[1])
    assert min(found) + 10 < got
    assert max(found) - 2 < got


def test_svm_of_one_label_a_class_takes_the_fixed_cost() -> None:
    train, test = blobs(7, seed=2), blobs(90, seed=3)
    scores = svm.decide(train[0], train[1], test[0], 7, 0)
    assert np.allclose(scores, machines_by_hand(train, test[0], svm.COST_OF_ONE))


def test_svm_of_more_labels_is_better() -> None:
    train, test = blobs(210), blobs(300, seed=1)
    found = dict(svm.svm((train[0], test[0]), (train[1], test[1]), 7, 0))
    assert set(found) == {
        f"svm{shots}{kind}" for shots in ("", *svm.SHOTS) for kind in ("", "_map")
    }
    assert found["svm1"] < found["svm2"] < found["svm4"] < found["svm16"] <= found["svm"] + 2
    assert found["svm1_map"] < found["svm4_map"] < found["svm16_map"] <= found["svm_map"] + 2


# --- crops and fine-tuning ------------------------------------------------------------------------


def test_crops_are_of_every_image_once_with_its_label(tmp_path: Path) -> None:
    images = pictures(tmp_path / "set", each=10)
    settings = dataclasses.replace(
        load_preset("folder"), data=f"folder:{images}", crops="2x16", areas=((0.25, 1),)
    )
    part = data.load(settings).train  # 16 images
    for most, sizes in ((5, [5, 5, 5]), (16, [16]), (99, [16])):
        found = list(crops.batches(part, settings, 0, most))
        assert [len(batch) for batch, _ in found] == sizes
        for batch, labels in found:
            assert batch.shape[1:] == (3, 16, 16)
            # without jitter and grey the colour tells the class: blue first, by name
            assert torch.equal((batch[:, 0] > batch[:, 2]).float().mean((1, 2)) > 0.5, labels == 1)
    (first, _), (again, _), (later, _) = (
        next(iter(crops.batches(part, settings, epoch, 16))) for epoch in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_schedules() -> None:
    assert [finetune.two_steps(epoch / 20) for epoch in (0, 11, 12, 15, 16, 19)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04]
    )
    assert [finetune.cosine(x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert finetune.recipe_for(1).rate == 5.0
    assert finetune.recipe_for(10).network_rate == 0.01


def test_linear_on_crops_leaves_the_network_and_fine_tuning_does_not() -> None:
    dataset = data.load(DIGITS)
    model = build_model(DIGITS, 1, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = dataclasses.replace(finetune.OFFICIAL_LINEAR, epochs=3)
    frozen = finetune.train(DIGITS, dataset.train, model, 10, recipe)
    for name, value in frozen[0].state_dict().items():
        assert torch.equal(value, before[f"backbone.{name}"]), name
    recipe = dataclasses.replace(finetune.TEN_PERCENT, epochs=3)
    moved = finetune.train(DIGITS, dataset.train, model, 10, recipe)
    assert not torch.equal(moved[0].conv1.weight, before["backbone.conv1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_fine_tuning_that_runs_away_is_refused(epochs: int) -> None:
    model = build_model(DIGITS, 1, torch.device("cpu"))
    wild = finetune.Recipe(epochs, 1e38, 1e38, 0.0, finetune.cosine)
    with pytest.raises(TrainerError, match="has run away to (nan|inf).*--rates"):
        finetune.semi_supervised(DIGITS, data.load(DIGITS), model, 10, 1, wild)


def test_more_labels_fine_tune_better() -> None:
    dataset = data.load(DIGITS)
    model = build_model(DIGITS, 1, torch.device("cpu"))
    recipe = finetune.Recipe(30, 0.5, 0.05, 0.0, finetune.two_steps)
    found = {}
    for share in (1, 50):
        found |= finetune.semi_supervised(DIGITS, dataset, model, 10, share, recipe)
    assert found["semi50"] > max(60, found["semi1"] + 10)
    again = finetune.semi_supervised(DIGITS, dataset, model, 10, 1, recipe)
    assert again == {name: found[name] for name in again}


# --- the command ----------------------------------------------------------------------------------


def test_every_protocol_by_one_command_also_on_other_images(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    options = ["--knn", "--linear", "--linear-crops", "--semi", "2,10", "--svm", "--epochs", "2"]
    assert cli.main(["eval", str(digits_run), *options, "--json-file", str(file)]) == 0
    found = json.loads(file.read_text())["swav"]
    table = json.loads((digits_run / "evaluation.json").read_text())["swav"]
    assert found["knn20"] == table["knn20"]
    assert len(found) == 4 + 4 * 2 + 12
    assert all(0 <= value <= 100 for value in found.values())
    out = capsys.readouterr().out
    assert "learning rate" in out
    assert all(f"{name} " in out for name in found)
    options = ["--data", "mnist5k", "--linear-crops", "--semi", "1", "--rates", "0.1", "0.01"]
    assert cli.main(["eval", str(digits_run), *options, "--epochs", "1"]) == 0
    assert "semi1_top5" in capsys.readouterr().out


def test_every_protocol_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = pictures(tmp_path / "set", each=110), tmp_path / "run"
    (images / "red" / "007.png").write_bytes(b"no image")
    options = ["--data", f"folder:{images}", "--output", str(run), "--epochs", "1", "--arch"]
    options += ["small", "--batch-size", "32", "--num-prototypes", "8", "--crops", "2x16"]
    assert cli.main(["train", *options, "--width", "4", "--areas", "0.25", "1"]) == 0
    other = f"folder:{pictures(tmp_path / 'other', each=20)}"
    file = tmp_path / "figures.json"
    options = ["--knn", "--linear", "--linear-crops", "--semi", "10", "--svm", "--epochs", "30"]
    for data_options in ([], ["--data", other]):
        arguments = ["eval", str(run), *options, *data_options, "--json-file", str(file)]
        assert cli.main(arguments) == 0
        found = json.loads(file.read_text())["swav"]
        assert len(found) == 4 + 1 + 1 + 1 + 12  # two classes have no five best
        # red from blue; 32 images of the other set are too few for crops in 30 epochs
        for name in ("knn10", "linear", "svm16", *([] if data_options else ["linear_crops"])):
            assert found[name] > 90, name
    settings = load(run / FILE)
    dataset = data.load(settings)
    backbone = build_model(settings, 3, torch.device("cpu")).backbone
    assert online.online_knn(settings, dataset, backbone, 50, 20) > 75
    heap = tmp_path / "heap"
    (heap / "all").mkdir(parents=True)
    for path in (images / "blue").glob("*.png"):
        path.rename(heap / "all" / path.name)
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--semi", "1", "--data", f"folder:{heap}"]) == 2
    assert "a folder for each class, two at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--semi", "1,x"], "--semi wants per cents of the labels such as 1,10, got '1,x'"),
        (["--semi", "0"], "--semi wants"),
        (["--semi", "101"], "--semi wants"),
        (["--linear", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--semi", "1", "--rates", "0", "1"], "--rates wants one above 0"),
        (["--rates", "1", "1"], "--rates is of --semi"),
        (["--svm", "--epochs", "3"], "--epochs is of --linear, --linear-crops and --semi"),
        (["--knn", "--data", "folder:none"], "no folder"),
    ],
)  # fmt: skip
def test_mistakes_are_told(
    digits_run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["eval", str(digits_run), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_processes_share_no_other_protocol(
    digits_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for options in ([], ["--knn", "--svm"]):
        assert cli.main(["eval", str(digits_run), *options]) == 2
        assert "processes share --knn alone" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[0, 0, 0], [-1, -1, -1]])
def test_images_without_labels_are_refused(labels: list[int]) -> None:
    part = data.Part(torch.zeros(3, 1, 16, 16), torch.tensor(labels))
    dataset = data.Dataset("heap", ("all",), part, part, "")
    backbone = build_model(DIGITS, 1, torch.device("cpu")).backbone
    with pytest.raises(TrainerError, match="needs labels, and the images of heap have none"):
        online.online_knn(DIGITS, dataset, backbone)


def test_a_run_without_a_checkpoint_is_named(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILE).write_bytes((digits_run / FILE).read_bytes())
    assert cli.main(["eval", str(tmp_path), "--knn"]) == 2
    assert f"no checkpoint {tmp_path / checkpoint.NAME}" in capsys.readouterr().err
