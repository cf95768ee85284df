"""What a finished run is good for: evaluation, features, prototypes, weights."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import pictures
from safetensors.torch import load_file
from swav_trainer import checkpoint, cli, data
from swav_trainer.settings import load
from swav_trainer.sources import packaged


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 220 files, one of which is no image."""
    images = pictures(tmp_path_factory.mktemp("images") / "set", each=110)
    (images / "red" / "007.png").write_bytes(b"no image")
    run = tmp_path_factory.mktemp("runs") / "files"
    options = ["--data", f"folder:{images}", "--output", str(run), "--epochs", "1"]
    options += ["--batch-size", "16", "--num-prototypes", "8", "--crops", "2x32"]
    assert cli.main(["train", *options, "--areas", "0.25", "1"]) == 0
    return run


def test_eval_gives_the_figures_of_the_run(digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    assert cli.main(["eval", str(digits_run), "--json-file", str(file)]) == 0
    wanted = json.loads((digits_run / "evaluation.json").read_text())
    del wanted["seconds"]
    assert json.loads(file.read_text()) == wanted


def test_eval_on_other_images(
    digits_run: Path, folder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(digits_run), "--data", "mnist5k"]) == 0
    assert "94.7" in capsys.readouterr().out  # neighbours in raw pixels of MNIST-5k
    images = pictures(tmp_path / "other")
    assert cli.main(["eval", str(folder_run), "--data", f"folder:{images}"]) == 0
    assert cli.main(["eval", str(digits_run), "--data", f"folder:{images}"]) == 2
    assert "3 channels, the run learned from 1" in capsys.readouterr().err


def test_embed_writes_features_with_their_labels(
    digits_run: Path, folder_run: Path, tmp_path: Path
) -> None:
    assert cli.main(["embed", str(digits_run), str(tmp_path / "a.npz")]) == 0
    archive = np.load(tmp_path / "a.npz")
    settings = load(digits_run / "config.toml")
    dataset = data.load(settings)
    assert archive["features"].shape == (1797, 16)
    assert archive["labels"].tolist() == [*dataset.train.labels, *dataset.test.labels]
    assert archive["held_out"].sum() == len(dataset.test)
    places = archive["names"].astype(int)
    assert sorted(places) == list(range(1797))
    assert (packaged.digits()[1][places].numpy() == archive["labels"]).all()
    assert cli.main(["embed", str(folder_run), str(tmp_path / "b.npz")]) == 0
    archive = np.load(tmp_path / "b.npz")
    assert archive["features"].shape == (219, 512)  # without the one that is no image
    for name, label in zip(archive["names"], archive["labels"], strict=True):
        assert Path(name).parent.name == archive["classes"][label]


def test_assign_tells_the_nearest_prototype_or_balances(digits_run: Path, tmp_path: Path) -> None:
    counts = {}
    for kind in ("nearest", "balanced"):
        file = tmp_path / f"{kind}.csv"
        assert cli.main(["assign", str(digits_run), str(file), "--kind", kind]) == 0
        rows = list(csv.DictReader(file.open()))
        assert len(rows) == 1797
        assert set(rows[0]) == {"name", "held_out", "class", "prototype", "score"}
        assert all(-1 <= float(row["score"]) <= 1 for row in rows)
        counts[kind] = np.bincount([int(row["prototype"]) for row in rows], minlength=60)
    assert counts["balanced"].std() < 0.7 * counts["nearest"].std()
    assert (counts["balanced"] > 0).sum() >= (counts["nearest"] > 0).sum()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_export_writes_the_backbone(folder_run: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights.{suffix}"
    assert cli.main(["export", str(folder_run), str(file)]) == 0
    weights = load_file(file) if suffix == "safetensors" else torch.load(file)
    tensors, _, _ = checkpoint.load(folder_run / checkpoint.NAME)
    assert len(weights) == 120  # of ResNet-18 without its classifier
    assert torch.equal(weights["conv1.weight"], tensors["model.backbone.conv1.weight"])
    assert "layer4.1.bn2.running_var" in weights


def test_mistakes_are_told_in_one_line(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["eval", str(tmp_path / "none")], "no folder"),
        (["embed", str(digits_run), str(tmp_path / "none" / "x.npz")], "cannot write"),
        (["export", str(digits_run), "x.onnx"], ".safetensors or .pth"),
        (["export", str(digits_run), str(tmp_path / "none" / "x.pth")], "cannot write"),
        (["export", str(digits_run), str(tmp_path / "none" / "x.safetensors")], "cannot write"),
        (["assign", str(tmp_path), "x.csv"], "cannot read"),
        (["evaluate", str(digits_run)], "did you mean 'eval'"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
