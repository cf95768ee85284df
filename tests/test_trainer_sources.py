"""Where images come from: every kind of `--data`, what it gives and what it refuses."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import pictures
from swav_trainer import cli, data
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError
from swav_trainer.evaluation import _pixels, features_of, knn
from swav_trainer.settings import load_preset, preset_for, resolve_data

FOLDER = dataclasses.replace(load_preset("folder"), batch_size=4, workers=2, crops="2x32+4x16")

RUN = ["--epochs", "1", "--batch-size", "16", "--num-prototypes", "8", "--crops", "2x16", "--areas",
       "0.25", "1", "--arch", "small", "--width", "4", "--hidden-dim", "16"]  # fmt: skip


def loaded(name: str, **settings: object) -> Dataset:
    """The data set of a name."""
    return data.load(dataclasses.replace(FOLDER, data=resolve_data(name), **settings))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synthetic", "unknown data 'synthetic'.*did you mean 'synthetic:'"),
        ("webdatset:x.tar", "did you mean 'webdataset:'"),
        ("nonsense:x", "choose from mnist5k, digits, folder:PATH, webdataset:PATTERN"),
        ("webdataset:", "webdataset: needs PATTERN behind it"),
        ("torchvision:CIFAR10,root", "'root' of 'CIFAR10,root' is not key=value"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        resolve_data(name)


def test_places_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    for name, wanted in {
        "digits": "digits",
        "folder:a": f"folder:{tmp_path}/a",
        "webdataset:a-{0..3}.tar": f"webdataset:{tmp_path}/a-{{0..3}}.tar",
        "hf:saved,split=test": f"hf:{tmp_path}/saved,split=test",
        "hf:a/name": "hf:a/name",
        "torchvision:SVHN,root=b,split=test": f"torchvision:SVHN,root={tmp_path}/b,split=test",
        "synthetic:10x8": "synthetic:10x8",
    }.items():
        assert resolve_data(name) == wanted
        assert preset_for(name) == ("digits" if name == "digits" else "folder")


# --- folders without classes ----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["flat", "one folder", "one folder and beside it", "deep"])
def test_images_that_are_not_in_class_folders_have_no_labels(tmp_path: Path, place: str) -> None:
    pictures(tmp_path / "classes")
    files = sorted((tmp_path / "classes").rglob("*.png"))
    folder = tmp_path / "set"
    for i, path in enumerate(files):
        inside = {"flat": "", "one folder": "a", "deep": f"a/{i % 3}/b"}.get(place, "a" * (i % 2))
        (folder / inside).mkdir(parents=True, exist_ok=True)
        path.rename(folder / inside / f"{i}.png")
    dataset = loaded(f"folder:{folder}")
    assert not dataset.has_labels
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert set(dataset.train.labels.tolist()) == {-1}
    paths = {*dataset.train.images.paths, *dataset.test.images.paths}
    assert paths == set(folder.rglob("*.png"))


def test_a_run_without_labels_leaves_out_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = pictures(tmp_path / "set", each=110), tmp_path / "run"
    (images / "blue").rename(images / "red" / "blue")
    (images / "red" / "000.png").write_bytes(b"no image")
    options = ["--data", f"folder:{images}", "--output", str(run), *RUN]
    assert cli.main(["train", *options]) == 0
    said = capsys.readouterr().out
    assert "set has no labels, or one class" in said
    assert "s in all. 1 of 220 image files could not be read" in said
    assert (run / "checkpoint.safetensors").exists()
    assert not (run / "evaluation.json").exists()
    assert cli.main(["embed", str(run), str(tmp_path / "a.npz")]) == 0
    archive = np.load(tmp_path / "a.npz")
    assert archive["features"].shape == (219, 16)
    assert set(archive["labels"]) == {-1}
    assert cli.main(["assign", str(run), str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open() as table:
        assert {row["class"] for row in csv.DictReader(table)} == {"unlabelled"}


# --- synthetic ------------------------------------------------------------------------------------


def test_synthetic_images_are_those_of_their_number() -> None:
    dataset = loaded("synthetic:40x24x4")
    again = loaded("synthetic:40x24x4", seed=1)  # another split of the same images
    assert (len(dataset.train), len(dataset.test)) == (32, 8)
    assert len(dataset.classes) == 4
    assert torch.bincount(dataset.test.labels).tolist() == [2, 2, 2, 2]
    source = dataset.train.images.source
    for row in (0, 39):
        image = source.decode(row)
        assert image.shape == (24, 24, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, again.train.images.source.decode(row))
    assert not np.array_equal(source.decode(0), source.decode(4))
    assert dataset.fingerprint == again.fingerprint != loaded("synthetic:41x24x4").fingerprint


def spectrum(pixels: torch.Tensor) -> torch.Tensor:
    """What tells stripes by their direction and width alone."""
    return torch.fft.rfft2(pixels.mean(1)).abs()[:, :16, 1:16].flatten(1)


def test_classes_of_synthetic_images_differ_by_their_stripes_and_not_by_colour() -> None:
    dataset = loaded("synthetic:400x32x4")
    labels = dataset.train.labels, dataset.test.labels
    colours = features_of(FOLDER, dataset, lambda pixels: pixels.mean((2, 3)))
    assert knn(colours, labels) < 45  # 25 by chance
    spectra = features_of(FOLDER, dataset, spectrum)
    assert knn(spectra, labels) > 90
    assert knn(features_of(FOLDER, dataset, _pixels), labels) < 75


@pytest.mark.parametrize("place", ["", "10", "10x8x1", "3x8x4", "10x3", "10x5000", "-1x8", "١x8"])
def test_synthetic_sizes_that_make_no_set_are_refused(place: str) -> None:
    with pytest.raises(TrainerError, match="COUNTxSIZE"):
        loaded(f"synthetic:{place}")


def test_a_run_on_synthetic_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--data", "synthetic:80x16x4", *RUN]) == 0
    assert (tmp_path / "runs" / "synthetic-80x16x4" / "report.html").exists()
