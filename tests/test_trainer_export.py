"""Weights for other libraries, the hub and ONNX; prototypes as Parquet."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import pictures
from safetensors.torch import load_file
from swav_trainer import cli
from swav_trainer.errors import TrainerError
from swav_trainer.layouts import convert
from swav_trainer.networks.resnet import RESNETS, ResNet
from swav_trainer.opened import open_run
from torch import nn

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18."""
    images = pictures(tmp_path_factory.mktemp("images") / "set", each=20)
    run = tmp_path_factory.mktemp("runs") / "files"
    options = ["--data", f"folder:{images}", "--output", str(run), "--epochs", "1"]
    options += ["--batch-size", "16", "--num-prototypes", "8", "--crops", "2x32"]
    assert cli.main(["train", *options, "--areas", "0.25", "1"]) == 0
    return run


class Detectron2Norm(nn.Module):
    """A frozen batch norm: no counter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))


def detectron2_names(blocks: tuple[int, ...], convolutions: int) -> set[str]:
    """Names of a Detectron2 ResNet: each convolution holds its norm."""
    parts = ("weight", *(f"norm.{name}" for name in Detectron2Norm(1).state_dict()))
    modules = ["stem.conv1"]
    for stage, count in enumerate(blocks, 2):
        for block in range(count):
            modules += [f"res{stage}.{block}.conv{i + 1}" for i in range(convolutions)]
            if block == 0 and (stage > 2 or convolutions == 3):
                modules.append(f"res{stage}.0.shortcut")
    return {f"{module}.{part}" for module in modules for part in parts}


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_layouts_name_every_weight(arch: str) -> None:
    blocks, bottleneck, *_ = RESNETS[arch]
    weights = ResNet(*RESNETS[arch]).state_dict()
    for layout in ("torchvision", "timm"):
        assert convert(weights, layout, arch) == weights
    named = convert(weights, "detectron2", arch)
    assert set(named) == detectron2_names(blocks, 3 if bottleneck else 2)
    assert named["res3.0.shortcut.norm.bias"] is weights["layer2.0.downsample.1.bias"]
    assert named["res5.1.conv2.norm.running_var"] is weights["layer4.1.bn2.running_var"]
    assert named["stem.conv1.norm.weight"] is weights["bn1.weight"]
    named = convert(weights, "detr", arch)
    assert set(named) == {
        f"backbone.0.body.{name}" for name in weights if "num_batches_tracked" not in name
    }


def test_export_writes_each_layout(folder_run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    assert cli.main(["export", str(folder_run), str(own)]) == 0
    weights = torch.load(own)
    for layout in ("torchvision", "timm", "detectron2", "detr"):
        wanted = convert(weights, layout, "resnet18")
        file = tmp_path / f"{layout}.pth"
        assert cli.main(["export", str(folder_run), str(file), "--layout", layout]) == 0
        found = torch.load(file)
        if layout in ("detectron2", "detr"):
            assert list(found) == ["model"]
            found = found["model"]
        tensors = tmp_path / f"{layout}.safetensors"
        assert cli.main(["export", str(folder_run), str(tensors), "--layout", layout]) == 0
        for got in (found, load_file(tensors)):
            assert got.keys() == wanted.keys()
            assert all(torch.equal(tensor, wanted[name]) for name, tensor in got.items())


def test_a_layout_without_the_network_is_refused(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("torchvision", "timm", "detectron2", "detr"):
        file = tmp_path / "x.pth"
        assert cli.main(["export", str(digits_run), str(file), "--layout", layout]) == 2
        error = capsys.readouterr().err
        assert f"--layout {layout} has resnet18, resnet34, resnet50" in error
        assert "this run's network is small" in error
        assert not file.exists()
    with pytest.raises(TrainerError, match="this run's network is resnet50w2"):
        convert({}, "timm", "resnet50w2")
    assert cli.main(["export", str(tmp_path / "none"), "x.pth"]) == 2
    assert "no folder" in capsys.readouterr().err


def backbone_of(run: Path) -> tuple[Any, torch.Tensor]:
    settings, dataset, model = open_run(run, None)
    images = torch.rand(5, dataset.num_channels, *2 * (settings.eval_size,))
    return model.backbone, images


@pytest.mark.parametrize("kind", ["digits_run", "folder_run"])
def test_onnx_computes_the_features(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    run = request.getfixturevalue(kind)
    file = tmp_path / "x.onnx"
    assert cli.main(["export", str(run), str(file), "--layout", "onnx"]) == 0
    onnx.checker.check_model(str(file))
    backbone, images = backbone_of(run)
    with torch.no_grad():
        wanted = backbone(images).numpy()  # of five images; it was written with two
    (got,) = ReferenceEvaluator(str(file)).run(["features"], {"images": images.numpy()})
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_what_is_not_installed_is_named_with_its_remedy(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    missing = ("onnxscript", "pyarrow")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    for arguments, message in (
        (["export", str(digits_run), "x.onnx", "--layout", "onnx"], "onnxscript: pip install 'sw"),
        (["export", str(digits_run), "x.pth", "--layout", "onnx"], "writes a .onnx file, got x.pt"),
        (["assign", str(digits_run), "x.parquet"], "pyarrow: pip install 'swav-kernels[parquet]'"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_onnx_and_parquet_name_a_folder_that_is_missing(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below = tmp_path / "none"
    for arguments in (
        ["export", str(digits_run), str(below / "x.onnx"), "--layout", "onnx"],
        ["assign", str(digits_run), str(below / "x.parquet")],
    ):
        assert cli.main(arguments) == 2
        assert "cannot write" in capsys.readouterr().err


def test_parquet_holds_what_the_csv_holds(digits_run: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    for name in ("x.csv", "x.parquet"):
        assert cli.main(["assign", str(digits_run), str(tmp_path / name)]) == 0
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert list(table) == list(rows[0])
    for name, column in table.items():
        wanted = [row[name] for row in rows]
        if name == "score":
            assert column == pytest.approx([float(value) for value in wanted], abs=1e-6)
        else:
            assert [str(value) for value in column] == wanted
    assert type(table["prototype"][0]) is int


# --- torch.hub ------------------------------------------------------------------------------------


def load(name: str, **options: Any) -> nn.Module:
    return torch.hub.load(str(ROOT), name, source="local", **options).eval()


def test_the_hub_gives_a_backbone_with_the_weights_of_a_run(
    folder_run: Path, tmp_path: Path
) -> None:
    backbone, images = backbone_of(folder_run)
    files = [tmp_path / "x.pth", tmp_path / "x.safetensors"]
    for file in files:
        assert cli.main(["export", str(folder_run), str(file)]) == 0
    with torch.no_grad():
        wanted = backbone(images)
        for weights in (folder_run, str(files[0]), files[1]):
            torch.testing.assert_close(load("resnet18", weights=weights)(images), wanted)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        shifted = images * std.view(3, 1, 1) + mean.view(3, 1, 1)
        normalising = load("resnet18", weights=folder_run, normalize=True)
        torch.testing.assert_close(normalising(shifted), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(TrainerError, match="is no resnet34"):
        load("resnet34", weights=files[0])


def test_the_hub_knows_every_resnet() -> None:
    for name, (_, _, widen, *_) in RESNETS.items():
        with torch.device("meta"):  # the widest has 586 million parameters
            assert load(name).conv1.out_channels == 64 * widen
    assert load("resnet50")(torch.rand(1, 3, 64, 64)).shape == (1, 2048)
