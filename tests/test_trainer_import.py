"""Released weights become a run: their names, their sizes, and what is refused."""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import pictures
from swav_trainer import checkpoint, cli, download, released
from swav_trainer.errors import TrainerError
from swav_trainer.settings import FILE, load
from torch import Tensor

HIDDEN, LENGTH, PROTOTYPES = 24, 12, 30
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # of ImageNet, as everyone states them
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def resnet50_shapes(width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet-50 without its classifier."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (width, 3, 7, 7)
    norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        inner = width * 2 ** (stage - 1)
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            for i, shape in enumerate(
                ((inner, inputs, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)), 1
            ):
                shapes[f"{at}.conv{i}.weight"] = shape
                norm(f"{at}.bn{i}", shape[0])
            if block == 0:
                shapes[f"{at}.downsample.0.weight"] = (4 * inner, inputs, 1, 1)
                norm(f"{at}.downsample.1", 4 * inner)
            inputs = 4 * inner
    return shapes


def head_shapes() -> dict[str, tuple[int, ...]]:
    norms = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (HIDDEN,))
    return {
        "0.weight": (HIDDEN, 2048), "0.bias": (HIDDEN,),
        **{f"1.{name}": shape for name, shape in norms.items()}, "1.num_batches_tracked": (),
        "3.weight": (LENGTH, HIDDEN), "3.bias": (LENGTH,),
    }  # fmt: skip


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that its name alone decides."""
    if not shape:
        return torch.tensor(7)
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.03
    return (
        tensor.abs() + 0.5
        if name.endswith(("running_var", "weight")) and tensor.dim() == 1
        else tensor
    )


def filled(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: values(name, shape) for name, shape in shapes.items()}


def official(prefix: str = "module.") -> dict[str, Any]:
    """What the released code saves."""
    return {
        **filled(resnet50_shapes(), prefix),
        **filled(head_shapes(), f"{prefix}projection_head."),
        f"{prefix}prototypes.weight": values("prototypes", (PROTOTYPES, LENGTH)),
    }


def vissl() -> dict[str, Any]:
    """What VISSL saves, with things beside the weights."""
    model = {
        "trunk": filled(resnet50_shapes(), "_feature_blocks."),
        "heads": {
            **filled(head_shapes(), "0.projection_head."),
            "0.prototypes0.weight": values("prototypes", (PROTOTYPES, LENGTH)),
        },
    }
    return {"phase_idx": 1, "classy_state_dict": {"base_model": {"model": model, "meters": {}}}}


@pytest.fixture(scope="module")
def official_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    torch.save(official(), folder / "swav.pth.tar")
    assert cli.main(["import", str(folder / "swav.pth.tar"), str(folder / "run")]) == 0
    return folder / "run"


def test_the_released_layout_becomes_a_run(official_run: Path) -> None:
    settings = load(official_run / FILE)
    assert (settings.arch, settings.hidden_dim, settings.feature_dim) == (
        "resnet50",
        HIDDEN,
        LENGTH,
    )
    assert (settings.num_prototypes, settings.head_batch_norm) == (PROTOTYPES, False)
    tensors, _, _ = checkpoint.load(official_run / checkpoint.NAME)
    for name, tensor in filled(resnet50_shapes()).items():
        assert torch.equal(tensors[f"model.backbone.{name}"], tensor), name
    for name, tensor in filled(head_shapes()).items():
        assert torch.equal(tensors[f"model.head.{name}"], tensor), name
    wanted = torch.nn.functional.normalize(values("prototypes", (PROTOTYPES, LENGTH)), dim=1)
    torch.testing.assert_close(tensors["model.prototypes.weight"], wanted)


@pytest.mark.parametrize(
    "make", [vissl, lambda: official(""), lambda: {"epoch": 3, "state_dict": official()}]
)
def test_other_layouts_give_the_same_run(
    official_run: Path, tmp_path: Path, make: Callable[[], dict[str, Any]]
) -> None:
    torch.save(make(), tmp_path / "x.torch")
    assert cli.main(["import", str(tmp_path / "x.torch"), str(tmp_path / "run")]) == 0
    wanted, _, _ = checkpoint.load(official_run / checkpoint.NAME)
    got, _, _ = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in got.items())
    assert (tmp_path / "run" / FILE).read_bytes() == (official_run / FILE).read_bytes()


def test_the_network_normalises_its_images(official_run: Path) -> None:
    network = released.resnet50()
    tensors, _, _ = checkpoint.load(official_run / checkpoint.NAME)
    prefix = "model.backbone."
    weights = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
    network.load_state_dict(weights)
    plain = released.ResNet(*released.RESNETS["resnet50"])
    plain.load_state_dict(weights)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        got, wanted = network.eval()(images), plain.eval()((images - MEAN) / STD)
    torch.testing.assert_close(got, wanted)
    assert (got - plain(images)).abs().max() > 1e-3  # 100 times the bound above


def test_the_commands_take_an_imported_run(
    official_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = f"folder:{pictures(tmp_path / 'set', each=5)}"
    run = str(official_run)
    assert cli.main(["eval", run, "--data", images, "--knn"]) == 0
    assert cli.main(["embed", run, str(tmp_path / "x.npz"), "--data", images]) == 0
    assert np.load(tmp_path / "x.npz")["features"].shape == (10, 2048)
    assert cli.main(["assign", run, str(tmp_path / "x.csv"), "--data", images]) == 0
    assert cli.main(["export", run, str(tmp_path / "x.pth"), "--layout", "torchvision"]) == 0
    assert torch.load(tmp_path / "x.pth").keys() == resnet50_shapes().keys()
    capsys.readouterr()
    assert cli.main(["embed", run, str(tmp_path / "y.npz")]) == 2
    assert "was imported without images: give --data folder:PATH" in capsys.readouterr().err
    assert cli.main(["train", "--resume", run]) == 2
    assert "was imported: it has no training to go on with" in capsys.readouterr().err
    own = tmp_path / "own"
    source = official_run.parent / "swav.pth.tar"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    options = ["--data", images, "--sha256", digest.upper()]
    assert cli.main(["import", str(source), str(own), *options]) == 0
    assert cli.main(["embed", str(own), str(tmp_path / "y.npz")]) == 0


class Code:
    """What a hostile pickle may call when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def write_bad(kind: str, file: Path) -> None:
    whole = io.BytesIO()
    torch.save(official(), whole)
    if kind == "truncated":
        file.write_bytes(whole.getvalue()[: 10**6])
    elif kind == "code":
        torch.save({**official(), "x": Code(file.with_name("witness"))}, file)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"x": 1}))
    elif kind == "text":
        file.write_text("no checkpoint at all\n")
    elif kind == "list":
        torch.save([torch.zeros(3)], file)
    elif kind == "names":
        torch.save({"encoder.embed.weight": torch.zeros(3), "encoder.norm": torch.zeros(3)}, file)
    elif kind == "headless":
        torch.save(filled(resnet50_shapes()), file)
    elif kind == "shape":
        torch.save({**official(), "module.layer2.0.conv1.weight": torch.zeros(3)}, file)
    elif kind == "lacking":
        content = official()
        del content["module.layer2.0.conv2.weight"]
        torch.save(content, file)
    elif kind == "dimensions":
        torch.save({**official(), "module.prototypes.weight": torch.zeros(())}, file)
    elif kind == "width":
        torch.save({**official(), "module.conv1.weight": torch.zeros(96, 3, 7, 7)}, file)
    elif kind == "safetensors":
        file.write_bytes(b"\1" * 100)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("truncated", "x.pth", "or a damaged one"),
        ("code", "x.pth", "refused: it holds code"),
        ("text", "x.pth", "is refused"),
        ("list", "x.pth", "holds list, not tensors by name"),
        ("names", "x.pth", "it holds the names encoder.embed.weight, encoder.norm, and lacks"),
        ("headless", "x.pth", "and lacks head.0.weight"),
        ("shape", "x.pth", "is no resnet50: backbone.layer2.0.conv1.weight has shape [3], wanted"),
        ("lacking", "x.pth", "backbone.layer2.0.conv2.weight"),
        ("dimensions", "x.pth", "must be matrices, have 2 and 0 dimensions"),
        ("width", "x.pth", "a ResNet with 96 channels first: known are 64 (resnet50)"),
        ("safetensors", "x.safetensors", "is no safetensors file"),
        ("pickle", "x.pth", "is refused"),
        ("none", "x.pth", "no file"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str, message: str
) -> None:
    write_bad(kind, tmp_path / name)
    assert cli.main(["import", str(tmp_path / name), str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "witness").exists()  # the code has not run


def test_a_run_is_not_overwritten_and_a_folder_must_be_writable(
    official_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(official_run.parent / "swav.pth.tar")
    for folder, options, message in (
        (official_run, [], "holds a run already"),
        (Path(source) / "below", [], "cannot write to"),
        (tmp_path / "run", ["--sha256", "00"], "has SHA-256"),
        (tmp_path / "run", ["--data", "digits"], "want images in colour, --data digits has none"),
        (tmp_path / "run", ["--data", "digit"], "unknown data 'digit'"),
    ):
        assert cli.main(["import", source, str(folder), *options]) == 2
        assert message in capsys.readouterr().err


# --- addresses: without a network -----------------------------------------------------------------


class Answer(io.BytesIO):
    """What an opener returns."""

    def __init__(self, content: bytes, promised: int | None = None) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content) if promised is None else promised)}


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    asked: list[str] = []

    def open_url(url: str, timeout: float) -> Any:
        asked.append(url)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(download, "opener", lambda: SimpleNamespace(open=open_url))
    return asked


def test_a_download_is_kept_if_whole_and_small_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "x"
    asked = answer_with(monkeypatch, Answer(b"weights"))
    download.download("https://host/x", file, most=7)
    assert file.read_bytes() == b"weights"
    assert asked == ["https://host/x"]
    for answer, message in (
        (Answer(b"weights!"), "more than 7 bytes"),
        (Answer(b"weigh", promised=7), "ended after 5 of 7 bytes"),
        (TimeoutError("timed out"), "cannot load https://host/x: timed out"),
    ):
        answer_with(monkeypatch, answer)
        with pytest.raises(TrainerError, match=message):
            download.download("https://host/x", file, most=7)


@pytest.mark.parametrize("url", ["http://host/x.pth", "file:///etc/passwd", "ftp://host/x.pth"])
def test_only_https_is_opened_even_after_a_redirection(tmp_path: Path, url: str) -> None:
    with pytest.raises(TrainerError, match="only https:// addresses"):
        download.download(url, tmp_path / "x")
    # what the opener itself says, which follows redirections
    with pytest.raises(OSError, match="unknown url type"):
        download.opener().open(url, timeout=1)


def test_import_takes_an_address(
    official_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = (official_run.parent / "swav.pth.tar").read_bytes()
    asked = answer_with(monkeypatch, Answer(content))
    url = "https://host/models/swav.pth.tar"
    assert cli.main(["import", url, str(tmp_path / "run")]) == 0
    assert asked == [url]
    wanted, _, _ = checkpoint.load(official_run / checkpoint.NAME)
    got, _, _ = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in got.items())
    answer_with(monkeypatch, Answer(b"<html>no such model</html>"))
    assert cli.main(["import", url, str(tmp_path / "other")]) == 2
    assert "swav.pth.tar is refused" in capsys.readouterr().err
