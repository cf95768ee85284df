"""Images from torchvision and Hugging Face datasets, both played here by small modules."""

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded
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


# --- Hugging Face ---------------------------------------------------------------------------------


@dataclasses.dataclass
class HfImage:
    """The library's type of images."""

    decode: bool = True
    dtype = "PIL.Image.Image"


@dataclasses.dataclass
class HfLabel:
    """The library's type of labels."""

    names: tuple[str, ...] = ("even", "odd")
    dtype = "int64"


NUMBER = types.SimpleNamespace(dtype="int64")


class Rows:
    """A set of the library: what of it the trainer calls."""

    def __init__(self, columns: dict[str, list], features: dict[str, object]) -> None:
        self.columns = columns
        self.features = features
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, chosen: int | slice) -> dict[str, object]:
        for name, feature in self.features.items():
            assert not (isinstance(feature, HfImage) and feature.decode), f"{name} by Pillow"
        return {name: values[chosen] for name, values in self.columns.items()}

    def select_columns(self, names: list[str]) -> "Rows":
        return Rows(*({name: x[name] for name in names} for x in (self.columns, self.features)))

    def cast_column(self, name: str, feature: object) -> "Rows":
        return Rows(self.columns, {**self.features, name: feature})


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with a set of two splits in `saved`, and one of a single split elsewhere."""
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "dataset_dict.json").touch()
    (tmp_path / "one.jpg").write_bytes(encoded("JPEG"))

    def rows(count: int) -> Rows:
        pictures = [{"bytes": encoded("PNG"), "path": None} for _ in range(count)]
        pictures[:4] = [
            {"bytes": None, "path": str(tmp_path / "one.jpg")},
            {"bytes": None, "path": "/none.jpg"}, {"bytes": b"no image", "path": None}, None,
        ]  # fmt: skip
        columns = {
            "id": list(range(count)), "picture": pictures, "thumb": pictures,
            "kind": [i % 2 for i in range(count)], "number": [7 * (i % 3) for i in range(count)],
            "partly": [None, *[1] * (count - 1)],
        }  # fmt: skip
        kinds = {"picture": HfImage(), "thumb": HfImage(), "kind": HfLabel()}
        return Rows(columns, {name: kinds.get(name, NUMBER) for name in columns})

    def load_dataset(name: str, configuration: str | None, download_config: object) -> object:
        assert download_config.local_files_only
        if name != "cached" or configuration != "small":
            raise ConnectionError("Couldn't reach it")
        return {"all": rows(500)}

    library = types.ModuleType("datasets")
    library.Image, library.ClassLabel, library.load_dataset = HfImage, HfLabel, load_dataset
    library.load_from_disk = lambda name: {"train": rows(500), "test": rows(40)}
    library.DownloadConfig = lambda local_files_only: types.SimpleNamespace(
        local_files_only=local_files_only
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    return folder


def test_columns_are_found_by_their_type(saved: Path) -> None:
    dataset = loaded(f"hf:{saved}")
    assert dataset.name == "saved"
    assert dataset.classes == ("even", "odd")
    assert len(dataset.train) + len(dataset.test) == 500
    for part in (dataset.train, dataset.test):
        assert torch.equal(part.labels, torch.from_numpy(part.images.rows % 2))
    source = dataset.train.images.source
    assert [source.decode(row) is None for row in range(5)] == [False, True, True, True, False]
    assert source.decode(0).shape == source.decode(4).shape == (40, 60, 3)
    dataset.train.readable(2), dataset.test.readable(2)
    assert {path.name for path in dataset.bad_files.paths} == {"1", "2", "3"}


def test_options_choose_split_and_columns(saved: Path) -> None:
    test = loaded(f"hf:{saved},split=test,label=number,image=thumb")
    assert test.classes == ("0", "7", "14")
    assert len(test.train) + len(test.test) == 40
    cached = loaded("hf:cached,name=small,label=number")
    assert len(cached.train) + len(cached.test) == 500
    prints = {loaded(f"hf:{saved}{x}").fingerprint for x in ("", ",split=test", ",label=number")}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (",split=val", "no split 'val': add split= one of train, test"),
        (",image=photo", "no column 'photo': choose from id, picture"),
        (",label=picture", "label=picture must be a column of whole numbers"),
        (",label=partly", "1 of 500 images have no label, such as saved/0"),
        (",spilt=test", "knows no spilt=; did you mean 'split'"),
        ("/none", "cannot be opened: Couldn't reach it; it wants a folder on this machine"),
    ],
)
def test_an_hf_set_that_cannot_serve_is_refused(saved: Path, options: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        loaded(f"hf:{saved}{options}")


def test_a_set_without_images_or_labels(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sys.modules["datasets"].load_from_disk("")["train"]
    monkeypatch.setattr(
        sys.modules["datasets"], "load_from_disk", lambda _: whole.select_columns(["picture"])
    )
    assert not loaded(f"hf:{saved}").has_labels
    with pytest.raises(TrainerError, match="has no splits: leave out split=train"):
        loaded(f"hf:{saved},split=train")
    monkeypatch.setattr(
        sys.modules["datasets"], "load_from_disk", lambda _: whole.select_columns(["id", "kind"])
    )
    with pytest.raises(TrainerError, match="no column of images among id, kind"):
        loaded(f"hf:{saved}")


def test_without_the_library_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TrainerError, match="pip install datasets"):
        loaded("hf:x")
