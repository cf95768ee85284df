"""Images from torchvision and Hugging Face datasets, both played here by small modules."""

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from swav_trainer import cli, data
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError
from swav_trainer.loader import Loader
from swav_trainer.settings import load_preset

FOLDER = dataclasses.replace(load_preset("folder"), batch_size=4, workers=2, crops="2x16+2x8")
RUN = ["--epochs", "1", "--batch-size", "16", "--num-prototypes", "8", "--crops", "2x16", "--areas",
       "0.25", "1", "--arch", "small", "--width", "4", "--hidden-dim", "16"]  # fmt: skip


def loaded(name: str) -> Dataset:
    """The data set of a name."""
    return data.load(dataclasses.replace(FOLDER, data=name))


# --- torchvision ----------------------------------------------------------------------------------


class Coloured:
    """Twenty items whose first channel is their number, as torchvision gives them."""

    classes = ("even", "odd")

    def __init__(self, root: str, train: bool = True, download: bool = False, size: int = 20):
        if download:
            raise AssertionError("nobody asked for a download")
        if not Path(root, "files").exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.targets = [i % 2 for i in range(size)] if train else torch.zeros(size).long()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[object, int]:
        pixels = np.full((9, 7, 3), (row, 100, 200), np.uint8)
        return self.of_kind(pixels), int(self.targets[row])

    def of_kind(self, pixels: np.ndarray) -> object:
        return Image.fromarray(pixels)


class Arrays(Coloured):
    def of_kind(self, pixels: np.ndarray) -> object:
        return pixels


class Grey(Coloured):
    def of_kind(self, pixels: np.ndarray) -> object:
        return torch.from_numpy(pixels[..., 0].copy())


class Floats(Coloured):
    def of_kind(self, pixels: np.ndarray) -> object:
        return pixels / 255


class Failing(Coloured):
    def of_kind(self, pixels: np.ndarray) -> object:
        raise OSError("broken file")


class Huge(Coloured):
    def of_kind(self, pixels: np.ndarray) -> object:
        huge = Image.new("1", (1, 1))
        huge._size = (2**14, 2**14)
        return huge


class Listless(Coloured):
    """Its labels are known by the items alone."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.numbers = self.__dict__.pop("targets")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> tuple[object, int]:
        return np.zeros((9, 7, 3), np.uint8), 4 + self.numbers[row]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torchvision, and a folder with its files."""
    package, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    kinds = (Coloured, Arrays, Grey, Floats, Failing, Huge, Listless)
    for kind in kinds:
        setattr(datasets, kind.__name__, kind)
    datasets.__all__ = [kind.__name__ for kind in kinds]
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    (tmp_path / "files").touch()
    return tmp_path


@pytest.mark.parametrize("kind", ["Coloured", "Arrays", "Grey"])
def test_items_of_torchvision_become_images_with_labels(root: Path, kind: str) -> None:
    dataset = loaded(f"torchvision:{kind},root={root}")
    assert dataset.classes == ("even", "odd")
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    for i in range(16):
        image = dataset.train.images.read(i)
        number = int(dataset.train.images.rows[i])
        assert image.shape == (9, 7, 3)
        assert image[3, 4].tolist() == ([number] * 3 if kind == "Grey" else [number, 100, 200])
        assert dataset.train.labels[i] == number % 2
    assert [x.shape[0] for x in next(Loader(dataset.train, FOLDER).batches(0))] == [8, 8]


def test_keywords_reach_torchvision(root: Path) -> None:
    dataset = loaded(f"torchvision:Coloured,root={root},train=false,size=30")
    assert len(dataset.train) + len(dataset.test) == 30
    assert not dataset.has_labels  # all are of one class
    assert dataset.fingerprint != loaded(f"torchvision:Coloured,root={root}").fingerprint


def test_labels_without_a_list_or_names(root: Path) -> None:
    dataset = loaded(f"torchvision:Listless,root={root}")
    assert dataset.classes == ("4", "5")
    assert dataset.train.labels.tolist() == [row % 2 for row in dataset.train.images.rows]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Colored,root=ROOT", r"no data set 'Colored'; did you mean 'Coloured'\?"),
        ("__name__,root=ROOT", "no data set '__name__'"),
        ("Coloured,root=ROOT/none", "Dataset not found.*fetch them first.*download=True"),
        ("Coloured", "missing 1 required positional argument: 'root'.*root=PATH"),
        ("Coloured,root=ROOT,colour=1", "unexpected keyword argument 'colour'"),
        ("Coloured,root=ROOT,size=0", "must be images with a whole number"),
    ],
)
def test_a_set_that_torchvision_cannot_make_is_refused(root: Path, name: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        loaded(f"torchvision:{name.replace('ROOT', str(root))}")


@pytest.mark.parametrize("kind", ["Floats", "Failing", "Huge"])
def test_items_that_are_no_images_are_bad(root: Path, kind: str) -> None:
    images = loaded(f"torchvision:{kind},root={root}").train.images
    assert images.source.decode(0) is None
    with pytest.raises(TrainerError, match=rf"1 of 20 image files cannot be read.*{kind}/"):
        images.read(0)


def test_without_torchvision_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(TrainerError, match="pip install torchvision"):
        loaded("torchvision:CIFAR10,root=x")


def test_a_run_on_torchvision(root: Path) -> None:
    run = root / "run"
    name = f"torchvision:Coloured,root={root},size=60"
    assert cli.main(["train", "--data", name, "--output", str(run), *RUN]) == 0
    assert (run / "report.html").exists()
