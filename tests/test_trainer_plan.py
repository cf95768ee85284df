"""`swav plan`: the rules, what is counted, and a preset that swav train takes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pictures import pictures
from swav_trainer import cli, data, settings
from swav_trainer.build import build_model
from swav_trainer.plan import cost, rules, survey
from swav_trainer.plan.survey import Survey

GIB = 2**30
FOLDER = settings.load_preset("folder")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of a hundred pictures of 30 x 40 pixels, one of which is no picture."""
    folder = pictures(tmp_path_factory.mktemp("plan") / "set", each=110)
    (folder / "red" / "003.png").write_bytes(b"no image")
    return folder


def chosen(**facts: float | bool) -> dict[str, object]:
    """Settings for a set, by their names."""
    usual = {
        "images": 4000, "classes": 10, "side": 400, "gpus": 0, "memory": 8 * GIB, "is_here": True
    }  # fmt: skip
    choices = rules.choose(Survey(**{**usual, **facts}))
    assert all(choice.reason for choice in choices)
    return {choice.name: choice.value for choice in choices}


def test_a_plan_is_a_preset_that_trains(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.toml"
    assert cli.main(["plan", "--data", f"folder:{images}", "--output", str(file)]) == 0
    text = capsys.readouterr().out
    assert "176 images to learn from in 2 classes, typically 30 pixels; for " in text
    assert "Memory: " in text
    assert "counted from" in text
    assert "measured in 4 steps of 16 images" in text
    config = settings.load(file)
    assert config.data == f"folder:{images}"
    assert (config.crops, config.arch, config.num_prototypes) == ("2x24+4x12", "small", 8)
    assert config.batch_size == 16
    reasons = [line for line in file.read_text().splitlines() if "  # " in line]
    assert len(reasons) >= 10
    run = tmp_path / "run"
    options = ["--preset", str(file), "--epochs", "1", "--output", str(run)]
    assert cli.main(["train", *options]) == 0
    assert (run / "evaluation.json").exists()
    assert cli.main(["plan", "--data", f"folder:{images}", "--output", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_small_sets_get_the_recipe_of_mnist() -> None:
    small = chosen(side=28)
    assert small["crops"] == "2x24+4x12"
    assert (small["arch"], small["learning_rate"]) == ("small", 6e-3)
    assert (small["num_prototypes"], small["epsilon"]) == (60, 0.03)
    assert rules.step_images(Survey(4000, 10, 28, 0, GIB, True), 60) == 128
    assert small["freeze_steps"] == 4000 // 128
    assert small["epochs"] == 100


def test_large_sets_on_gpus_get_the_papers_settings() -> None:
    large = chosen(images=1_281_167, classes=1000, side=375, gpus=8)
    assert (large["crops"], large["arch"]) == ("2x224+6x96", "resnet50")
    assert (large["num_prototypes"], large["epsilon"]) == (3000, 0.05)
    assert (large["optimizer"], large["learning_rate"], large["rate_images"]) == ("lars", 4.8, 4096)
    assert large["freeze_steps"] == 1_281_167 // 4096
    assert chosen(images=1_281_167, classes=1000, side=375)["crops"] == "2x96+4x48"  # on a CPU


@pytest.mark.parametrize("count", [64, 100, 641, 5000, 200_000])
@pytest.mark.parametrize("classes", [2, 30, 5000])
@pytest.mark.parametrize("gpus", [0, 3])
def test_every_choice_makes_settings_that_are_taken(count: int, classes: int, gpus: int) -> None:
    facts = chosen(images=count, classes=classes, gpus=gpus)
    step = rules.step_images(Survey(count, classes, 400, gpus, GIB, True), facts["num_prototypes"])
    config = dataclasses.replace(FOLDER, batch_size=step, **facts)
    assert count // config.step_images >= 4  # steps an epoch
    assert 2 <= config.num_prototypes <= count / 20 + 1
    assert config.freeze_steps < config.epochs * (count // step)


def test_the_memory_is_that_of_the_tensors_that_are_kept() -> None:
    tiny = dataclasses.replace(FOLDER, arch="small", width=4, crops="2x16+1x8")
    needs = cost.memory(tiny, 3)
    model = build_model(tiny, 3, torch.device("cpu"))
    weights = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    assert needs.fixed == 4 * weights
    assert needs.of(10) == cost.OVERHEAD + cost.MARGIN * (needs.fixed + 10 * needs.an_image)
    # twice the pixels each way are four times the memory, but for the head's share
    larger, largest = (
        cost.memory(dataclasses.replace(tiny, crops=crops), 3)
        for crops in ("2x32+1x16", "2x64+1x32")
    )
    steps = larger.an_image - needs.an_image, largest.an_image - larger.an_image
    assert steps[1] == pytest.approx(4 * steps[0], rel=0.01)
    # every block keeps its inputs: no less than the images and the first layer's outputs
    first = 4 * (3 + 3 * 4) * (2 * 16 * 16 + 8 * 8)
    assert needs.an_image > first


def test_less_memory_means_fewer_images_at_a_time(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["plan", "--data", f"folder:{images}", "--gpus", "2"]
    usual = dataclasses.replace(FOLDER, **chosen(images=176, classes=2, side=30, gpus=2))
    needs = cost.memory(usual, 3)
    file = tmp_path / "less.toml"
    memory = needs.of(5) / GIB
    assert cli.main([*base, "--memory", str(memory), "--output", str(file)]) == 0
    assert "Time: not measured" in capsys.readouterr().out
    config = settings.load(file)
    assert (config.batch_size, config.effective_batch) == (8, 16)  # four on each of two
    assert cli.main([*base, "--memory", str(needs.of(1) / GIB), "--output", "x.toml"]) == 2
    error = capsys.readouterr().err
    assert "GiB for two images" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "folder:nowhere"], "no folder"),
        (["--data", "digits"], "is for image folders"),
        (["--data", "folder:FEW"], "are too few, 64 at least"),
        (["--data", "folder:SET", "--gpus", "99"], "give the memory of each as --memory"),
        (["--data", "folder:SET", "--gpus", "-1"], "--gpus must be 0 or more"),
        (["--data", "folder:SET", "--memory", "0"], "--memory above 0"),
        (["--data", "folder:SET", "--memory", "0.001", "--gpus", "0"], "for two images"),
        (["--data", "folder:SET", "--memory", "9", "--output", "no/x.toml"], "cannot write"),
    ],
)
def test_mistakes_are_told_in_one_line(
    options: list[str], message: str, images: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "seconds_an_image", lambda *_: 0.1)
    few = pictures(tmp_path / "few", each=35)
    options = [x.replace("SET", str(images)).replace("FEW", str(few)) for x in options]
    assert cli.main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("plan.toml").exists()


def test_a_set_of_bad_files_is_refused(images: Path, tmp_path: Path, capsys) -> None:
    folder = pictures(tmp_path / "set", each=60)
    for path in folder.rglob("*.png"):
        if path.stem > "020":
            path.write_bytes(b"no image")
    file = tmp_path / "plan.toml"
    assert cli.main(["plan", "--data", f"folder:{folder}", "--output", str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    found = survey.look(
        data.load(dataclasses.replace(FOLDER, data=f"folder:{images}")), 0, 3.0
    )  # one bad file is no trouble
    assert (found.side, found.memory, found.gpus) == (30, 3 * GIB, 0)
