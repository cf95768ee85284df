"""Where images come from: every kind of `--data`, what it gives and what it refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from swav_trainer import cli, data
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError
from swav_trainer.evaluation import _pixels, features_of, knn
from swav_trainer.settings import load_preset, preset_for, resolve_data

FOLDER = dataclasses.replace(load_preset("folder"), batch_size=4, workers=2, crops="2x32+4x16")


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
    options = ["--data", "synthetic:80x16x4", "--epochs", "1", "--batch-size", "16"]
    options += ["--num-prototypes", "8", "--crops", "2x16", "--areas", "0.25", "1"]
    options += ["--arch", "small", "--width", "4", "--hidden-dim", "16", "--workers", "1"]
    assert cli.main(["train", *options]) == 0
    assert (tmp_path / "runs" / "synthetic-80x16x4" / "report.html").exists()
