"""Data, crops, networks, schedule, alarm and evaluation, each by itself."""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from swav_trainer import alarm, augment, config, data, evaluation, files, optim, seeds
from swav_trainer.errors import TrainerError
from swav_trainer.loader import Loader
from swav_trainer.model import Model

DIGITS = config.load_preset("digits")
FOLDER = dataclasses.replace(config.load_preset("folder"), batch_size=4, workers=2)


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
    dataset = data.load(config.load_preset(name))
    assert dataset.train.images.shape[1:] == (1, size, size)
    assert len(dataset.train) + len(dataset.test) == count
    assert 0 <= dataset.train.images.min() < dataset.train.images.max() <= 1
    held_out = torch.bincount(dataset.test.labels) / count
    assert (held_out - 0.02).abs().max() < 0.002  # 20 % of each of ten classes
    again = data.load(config.load_preset(name))
    assert torch.equal(dataset.train.images, again.train.images)
    other = data.load(dataclasses.replace(config.load_preset(name), seed=1))
    assert not torch.equal(dataset.test.labels, other.test.labels)


def test_class_folders(image_folder: Path) -> None:
    dataset = data.load(dataclasses.replace(FOLDER, data=f"folder:{image_folder}"))
    assert dataset.classes == ("cats", "dögs <b>")
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    for part in (dataset.train, dataset.test):
        names = [dataset.classes[label] for label in part.labels]
        assert [path.parent.name for path in part.images] == names


def test_a_bad_image_is_skipped_counted_and_named(image_folder: Path) -> None:
    paths = sorted((image_folder / "cats").iterdir())
    paths[3].write_bytes(b"no image")
    reader = files.ImageFiles(paths * 30)
    assert np.array_equal(reader.read(3), files.decode(paths[4]))  # the next one in its place
    assert np.array_equal(reader.read(33), files.decode(paths[4]))
    assert reader.bad == {paths[3]}
    assert reader.names().endswith(paths[3].name)
    for path in paths[4:9]:
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainerError, match=r"image files cannot be read, more than 1%"):
        reader.read(3)


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


def test_crops_of_files_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, :40] = (200, 40, 40)
    still = dataclasses.replace(FOLDER, flip=0.0, jitter=0.0, grey=0.0, blur=0.0)
    whole = files.random_crop(image, 48, (1.0, 1.0), dataclasses.replace(still, aspect=1.35), rng)
    assert whole.shape == (48, 48, 3)
    grey = files.random_crop(image, 48, (0.1, 1.0), dataclasses.replace(still, grey=1.0), rng)
    assert np.array_equal(grey[..., 0], grey[..., 1])
    flipped = cv2.resize(image, (48, 48))[:, ::-1]
    mirrored = files.random_crop(
        image, 48, (1.0, 1.0), dataclasses.replace(still, flip=1.0, aspect=1.0001), rng
    )
    assert mirrored.shape == flipped.shape
    hues = [
        files.random_crop(image, 48, (0.5, 1.0), dataclasses.replace(still, jitter=1.0), rng)
        for _ in range(8)
    ]
    assert len({int(hue.sum()) for hue in hues}) == 8


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "parameters", "entries", "dim"),
    [("resnet18", 11_176_512, 120, 512), ("resnet34", 21_284_672, 216, 512),
     ("resnet50", 23_508_032, 318, 2048)],
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
    assert ("layer1.0.downsample.0.weight" in names) == (arch == "resnet50")
    assert backbone(torch.zeros(2, 3, 48, 48)).shape == (2, dim)


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
