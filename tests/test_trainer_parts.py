"""Data, crops, networks, schedule, alarm and evaluation, each by itself."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from swav_trainer import alarm, augment, config, data, evaluation, files, images, optim, seeds
from swav_trainer.errors import TrainerError
from swav_trainer.loader import Loader
from swav_trainer.model import Model
from swav_trainer.settings import load_preset

DIGITS = load_preset("digits")
FOLDER = dataclasses.replace(load_preset("folder"), batch_size=4, workers=2)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of ten small pictures."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cats", "dögs <b>")):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 100, (40, 50, 3), dtype=np.uint8) + 100 * label
            suffix = ("png", "jpg", "JPEG")[i % 3]
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.{suffix}")
    return tmp_path


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "count"), [("digits", 16, 1797), ("mnist5k", 24, 5000)])
def test_sets_that_come_in_a_package(name: str, size: int, count: int) -> None:
    dataset = data.load(load_preset(name))
    assert dataset.train.images.shape[1:] == (1, size, size)
    assert len(dataset.train) + len(dataset.test) == count
    assert 0 <= dataset.train.images.min() < dataset.train.images.max() <= 1
    held_out = torch.bincount(dataset.test.labels) / count
    assert (held_out - 0.02).abs().max() < 0.002  # 20 % of each of ten classes
    again = data.load(load_preset(name))
    assert torch.equal(dataset.train.images, again.train.images)
    other = data.load(dataclasses.replace(load_preset(name), seed=1))
    assert not torch.equal(dataset.test.labels, other.test.labels)


def test_class_folders(image_folder: Path) -> None:
    dataset = data.load(dataclasses.replace(FOLDER, data=f"folder:{image_folder}"))
    assert dataset.classes == ("cats", "dögs <b>")
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    for part in (dataset.train, dataset.test):
        names = [dataset.classes[label] for label in part.labels]
        assert [path.parent.name for path in part.images.paths] == names


def test_a_bad_image_is_skipped_counted_and_named(image_folder: Path) -> None:
    paths = sorted((image_folder / "cats").iterdir())
    paths[3].write_bytes(b"no image")
    bad = images.BadFiles(100)
    reader = images.Images(files.ImageFiles(paths), np.arange(10), bad)
    assert np.array_equal(reader.read(3), files.decode(paths[4]))  # training takes the next one
    assert np.array_equal(reader.read(3), files.decode(paths[4]))
    assert bad.paths == {paths[3]}
    assert bad.names().endswith(paths[3].name)
    # the evaluation leaves it out, and its label with it
    part = data.Part(reader, torch.arange(10)).readable(workers=2)
    assert part.labels.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert part.images.paths == [path for path in paths if path != paths[3]]


def test_more_than_one_bad_image_in_a_hundred_ends_the_run(image_folder: Path) -> None:
    paths = sorted((image_folder / "cats").iterdir())
    for path in paths[3:5]:
        path.write_bytes(path.read_bytes()[:20])
    for count, fails in ((200, False), (199, True)):  # exactly 1 % still passes
        reader = images.Images(files.ImageFiles(paths), np.arange(10), images.BadFiles(count))
        if fails:
            with pytest.raises(
                TrainerError, match=rf"2 of {count} .*more than 1%.*{paths[3].name}"
            ):
                reader.readable(workers=1)
        else:
            assert len(reader.readable(workers=1)) == 8


def test_a_folder_that_cannot_serve_is_refused(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(FOLDER, data=f"folder:{image_folder}")
    scan = os.scandir

    def refuse_cats(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "cats":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse_cats)
        with pytest.raises(TrainerError, match="cats: Permission"):
            data.load(settings)
    for path in sorted(image_folder.rglob("*.*")):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(TrainerError, match=r"no images in .*\.webp files, in a folder for each"):
        data.load(settings)


def test_the_fingerprint_knows_the_files_and_not_where_they_lie(image_folder: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return data.load(dataclasses.replace(FOLDER, data=f"folder:{folder}")).fingerprint

    before = fingerprint(image_folder)
    moved = image_folder.rename(image_folder.with_name("moved"))
    assert fingerprint(moved) == before
    (moved / "cats" / "0.png").rename(moved / "cats" / "new.png")
    assert fingerprint(moved) != before


def test_decoding_gives_upright_rgb(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15, 0] = 255  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", quality=100, exif=exif)
    decoded = files.decode(tmp_path / "turned.jpg")
    assert decoded.shape == (20, 30, 3)
    assert decoded[10, 5].max() < 30
    assert decoded[10, 25, 0] > 225
    for mode in ("L", "CMYK"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{mode}.jpg")
        assert files.decode(tmp_path / f"{mode}.jpg").shape == (20, 30, 3)


# --- crops ----------------------------------------------------------------------------------------


def test_crops_of_tensors_are_seeded_and_in_range() -> None:
    images = data.load(DIGITS).train.images[:64]
    crops = [
        augment.random_crops(images, 10, (0.25, 0.6), DIGITS, seeds.torch_generator(0, epoch))
        for epoch in (0, 0, 1)
    ]
    assert crops[0].shape == (64, 1, 10, 10)
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])
    assert crops[0].min() >= 0
    assert crops[0].max() <= 1 + 1e-6


def test_a_crop_without_distortion_is_the_image() -> None:
    still = dataclasses.replace(DIGITS, rotation=0.0, jitter=0.0, blur=0.0, aspect=1.0)
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    crops = augment.random_crops(images, 16, (1.0, 1.0), still, seeds.torch_generator(0))
    assert (crops - images).abs().max() < 1e-5
    mirrored = dataclasses.replace(still, flip=1.0)
    crops = augment.random_crops(images, 16, (1.0, 1.0), mirrored, seeds.torch_generator(0))
    assert (crops - images.flip(-1)).abs().max() < 1e-5


def test_blur_keeps_the_mean_and_lowers_the_contrast() -> None:
    blurring = dataclasses.replace(DIGITS, rotation=0.0, jitter=0.0, blur=1.0, aspect=1.0)
    images = torch.zeros(3, 2, 16, 16)
    images[:, 0, 8, 8] = 1
    crops = augment.random_crops(images, 16, (1.0, 1.0), blurring, seeds.torch_generator(0))
    assert torch.allclose(crops[:, 0].sum((1, 2)), torch.ones(3), atol=1e-4)
    assert (crops[:, 0].amax((1, 2)) < 0.9).all()
    assert crops[:, 1].abs().max() == 0  # channels do not mix


def test_crops_of_files_do_not_depend_on_threads(image_folder: Path) -> None:
    settings = dataclasses.replace(FOLDER, data=f"folder:{image_folder}")
    part = data.load(settings).train
    runs = [
        list(Loader(part, dataclasses.replace(settings, workers=workers)).batches(epoch))
        for workers, epoch in ((1, 0), (4, 0), (1, 1))
    ]
    assert len(runs[0]) == 4
    assert [tuple(x.shape) for x in runs[0][0]] == [(8, 3, 96, 96), (16, 3, 48, 48)]
    for one, four in zip(runs[0], runs[1], strict=True):
        assert all(map(torch.equal, one, four))
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    resumed = list(Loader(part, settings).batches(0, first_step=2))
    assert torch.equal(resumed[0][0], runs[0][2][0])
    assert len(resumed) == 2


STILL = dataclasses.replace(FOLDER, flip=0.0, jitter=0.0, grey=0.0, blur=0.0, aspect=1.0)
WHOLE = (1.0, 1.0)
LUMA = np.array([0.299, 0.587, 0.114])


def picture() -> np.ndarray:
    """A smooth RGB picture [64, 64, 3] without symmetry; red tells x, green tells y."""
    y, x = np.mgrid[0:64, 0:64].astype(np.uint8)
    return np.stack([3 * x + 20, 2 * y + 60, x + y // 2 + 30], -1)


def crops_of_files(count: int, size: int, area: tuple[float, float], **settings) -> np.ndarray:
    """Crops [count, size, size, 3] of the picture, as integers."""
    rng = np.random.default_rng(0)
    changed = dataclasses.replace(STILL, **settings)
    crops = [files.random_crop(picture(), size, area, changed, rng) for _ in range(count)]
    return np.stack(crops).astype(int)


def test_a_crop_of_a_file_without_distortion_is_the_image() -> None:
    mirrored = picture()[:, ::-1]
    assert np.array_equal(crops_of_files(1, 64, WHOLE)[0], picture())
    assert np.array_equal(crops_of_files(1, 64, WHOLE, flip=1.0)[0], mirrored)
    crops = crops_of_files(200, 64, WHOLE, flip=0.5)
    assert 70 < sum(np.array_equal(crop, mirrored) for crop in crops) < 130


def test_crops_of_files_cover_the_area_and_the_aspect_that_are_asked_for() -> None:
    crops = crops_of_files(300, 16, (0.1, 0.6), aspect=4 / 3)
    # the outer pixels of 16 lie a sixteenth of the side further in than its ends
    width = np.ptp(crops[..., 0], axis=(1, 2)) / 3 * 16 / 15
    height = np.ptp(crops[..., 1], axis=(1, 2)) / 2 * 16 / 15
    share, aspect = width * height / 64**2, width / height
    assert 0.07 < share.min() < 0.15
    assert 0.55 < share.max() < 0.65
    assert 0.7 < aspect.min() < 0.82
    assert 1.22 < aspect.max() < 1.42
    for corner in (0, -1):  # some crops reach each corner
        reached = np.abs(crops[:, corner, corner, :2] - picture()[corner, corner, :2]).max(1) < 12
        assert reached.any()


def test_blur_and_grey_of_files() -> None:
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[32, 32] = 250
    settings = dataclasses.replace(STILL, blur=1.0, blur_sigma=(1.0, 1.0))
    blurred = files.random_crop(dot, 64, WHOLE, settings, np.random.default_rng(0)).astype(int)
    assert 30 < blurred[32, 32, 0] < 45  # 250 / (2 pi)
    (grey,) = crops_of_files(1, 64, WHOLE, grey=1.0)
    assert np.abs(grey - (picture() @ LUMA)[..., None]).max() <= 1


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue"])
def test_each_jitter_of_files_changes_what_it_is_named_after(change: str) -> None:
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "jitter": 1.0}
    strength = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.3, "hue": 0.2}[change]
    before = picture().astype(int)
    assert np.abs(crops_of_files(1, 64, WHOLE, **off)[0] - before).max() <= 1
    crops = crops_of_files(60, 64, WHOLE, **{**off, change: strength})
    if change == "hue":
        shifted = np.abs(crops - before).mean((1, 2, 3))
        assert shifted.max() > 20
        assert shifted.min() < 10
        assert np.abs(crops.max(-1) - before.max(-1)).max() <= 3  # the value stays
        return
    measure = {
        "brightness": lambda x: x.mean((-1, -2, -3)),
        "contrast": lambda x: (x @ LUMA).std((-1, -2)),
        "saturation": lambda x: np.ptp(x, axis=-1).mean((-1, -2)),  # of the channels
    }[change]
    factors = measure(crops) / measure(before)
    assert 1 - strength - 0.03 < factors.min() < 1 - strength / 2
    assert 1 + strength / 2 < factors.max() < 1 + strength + 0.03


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "parameters", "entries", "dim"),
    [("resnet18", 11_176_512, 120, 512), ("resnet34", 21_284_672, 216, 512),
     ("resnet50", 23_508_032, 318, 2048), ("resnet50w2", 93_907_072, 318, 4096)],
)  # fmt: skip
def test_resnets_have_torchvisions_names(
    arch: str, parameters: int, entries: int, dim: int
) -> None:
    backbone = Model(dataclasses.replace(FOLDER, arch=arch), 3).backbone
    assert sum(p.numel() for p in backbone.parameters()) == parameters  # without the classifier
    names = list(backbone.state_dict())
    assert len(names) == entries
    for name in (
        "conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn2.bias",
        "layer2.0.downsample.0.weight", "layer2.0.downsample.1.num_batches_tracked",
        "layer4.1.conv2.weight",
    ):  # fmt: skip
        assert name in names
    assert ("layer1.0.downsample.0.weight" in names) == arch.startswith("resnet50")
    assert backbone(torch.zeros(2, 3, 48, 48)).shape == (2, dim)


def own_network() -> torch.nn.Module:
    """What a user may bring."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )  # fmt: skip


def returns_a_pair() -> torch.nn.Module:
    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    return Pair()


def test_a_network_of_the_users() -> None:
    model = Model(dataclasses.replace(DIGITS, model=f"{__name__}:own_network"), 1)
    assert model.head[0].in_features == 6
    assert model.backbone.training
    assert model([torch.rand(4, 1, 16, 16), torch.rand(8, 1, 10, 10)]).shape == (12, 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_network", "package.module:callable"),
        ("no_such_module:net", "No module named"),
        ("math:net", "no attribute 'net'"),
        ("math:pi", "returns NoneType, not a torch module"),
        ("torch.nn:Identity", r"must return features \[B, dim\], got \[2, 1, 16, 16\]"),
        ("torch.nn:Flatten", r"lengths \[256, 100\] for crops of \[16, 10\]"),
        (f"{__name__}:returns_a_pair", "got tuple"),
        ("torch.nn:Threshold", "fails: TypeError.*missing 2 required"),
    ],
)
def test_a_network_that_cannot_serve_is_refused(name: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        Model(dataclasses.replace(DIGITS, model=name), 1)


def test_the_model_projects_crops_of_several_sizes_to_unit_features() -> None:
    model = Model(DIGITS, 1)
    features = model([torch.rand(4, 1, 16, 16), torch.rand(8, 1, 10, 10)])
    assert features.shape == (12, 64)
    assert (features.norm(dim=1) - 1).abs().max() < 1e-5


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [optim.learning_rate(step, 200, DIGITS) for step in range(200)]
    peak = max(rates)
    assert peak == pytest.approx(DIGITS.learning_rate, rel=0.02)
    assert rates.index(peak) in (9, 10)  # 5 % of the steps
    assert rates[0] < 0.1 * peak
    assert rates[-1] < 0.002 * peak
    assert rates[105] == pytest.approx(peak / 2, rel=0.02)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_moves_each_matrix_by_its_own_norm(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (7,), (4, 2, 3, 3)]
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    start.append(torch.zeros(3, 3, dtype=torch.float64))  # of norm 0: as in SGD
    parameters = [x.clone().requires_grad_() for x in start]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lars = optim.Lars(groups, lr=0.5, momentum=0.9, trust=0.01)
    weights, speeds = [x.clone() for x in start], [torch.zeros_like(x) for x in start]
    for _ in range(3):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            g, w = p.grad.clone(), weights[i]
            if p.ndim > 1:
                g = g + decay * w
                if w.norm() > 0:
                    g = 0.01 * w.norm() / (p.grad.norm() + decay * w.norm()) * g
            speeds[i] = 0.9 * speeds[i] + g
            weights[i] = w - 0.5 * speeds[i]
        lars.step()
        for p, w in zip(parameters, weights, strict=True):
            torch.testing.assert_close(p.detach(), w)
    assert [group["weight_decay"] for group in lars.param_groups] == [decay, 0.0]


# --- alarm ----------------------------------------------------------------------------------------


def raised(settings: config.Config, **stats: float) -> list[alarm.Alarm]:
    """Alarms of a long run with the same telemetry at every step."""
    watch = alarm.Watch(settings)
    healthy = {"loss": 2.0, "usage_entropy": 0.95, "mean_max_code": 0.5} | stats
    for step in range(1, 300):
        watch.see(step, healthy["loss"], healthy)
    return watch.raised


def test_the_alarm_names_cause_and_remedy_once() -> None:
    assert raised(DIGITS) == []
    (stuck,) = raised(DIGITS, loss=0.97 * math.log(60), mean_max_code=2 / 60)
    assert stuck.diagnosis == "stuck at ln K"
    assert "Lower --epsilon, for example to 0.015" in stuck.remedy
    assert stuck.step >= alarm.GRACE
    assert raised(DIGITS, loss=0.97 * math.log(60)) == []  # sharp codes: still learning
    (collapse,) = raised(DIGITS, usage_entropy=0.2, loss=0.3)
    assert collapse.diagnosis == "collapse"
    assert "--learning-rate" in collapse.remedy
    (softmax,) = raised(dataclasses.replace(DIGITS, assignment="softmax"), usage_entropy=0.2)
    assert "--assignment sinkhorn" in softmax.remedy


def test_a_small_batch_that_uses_all_it_can_is_no_collapse() -> None:
    few = dataclasses.replace(DIGITS, batch_size=4, num_prototypes=3000)
    assert raised(few, usage_entropy=math.log(8) / math.log(3000)) == []
    assert raised(few, usage_entropy=0.4 * math.log(8) / math.log(3000)) != []


# --- evaluation -----------------------------------------------------------------------------------


def test_scores_of_features_that_tell_all_and_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(40), torch.arange(10).repeat(10)
    good = tuple(
        torch.eye(10)[part] + 0.05 * torch.randn(len(part), 10, generator=generator)
        for part in labels
    )
    assert set(evaluation.score(good, labels, 0).values()) == {100.0}
    bad = tuple(torch.randn(len(part), 10, generator=generator) for part in labels)
    for value in evaluation.score(bad, labels, 0).values():
        assert value < 35
    assert evaluation.score(bad, labels, 0) == evaluation.score(bad, labels, 0)


def test_neighbours_vote_with_their_similarity() -> None:
    # 19 of the 20 neighbours are of class 1 but far; the one of class 0 is equal
    train = torch.cat([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]).expand(19, 2)])
    labels = torch.cat([torch.zeros(1), torch.ones(19)]).long()
    test = torch.tensor([[1.0, 0.0]])
    assert evaluation.knn((train, test), (labels, torch.tensor([0]))) == 100.0
