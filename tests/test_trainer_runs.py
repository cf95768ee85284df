"""`swav train` from end to end, on small runs: what it writes, learns, survives and shows."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from swav_trainer import checkpoint, cli, data, evaluation
from swav_trainer.build import build_model
from swav_trainer.config import Config
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.log import Log, read
from swav_trainer.settings import load, load_preset, save

DIGITS = load_preset("digits")
# of a line of metrics.jsonl, what no two runs have alike
TIMES = ("seconds", "data_share", "network_share", "loss_share", "peak_memory")
SHORT = dataclasses.replace(DIGITS, epochs=2, width=4, log_every=1, queue_length=256)


def trained(settings: Config, folder: Path) -> Trainer:
    """A finished run."""
    folder.mkdir(exist_ok=True)
    trainer = Trainer(settings, data.load(settings), folder)
    with Log(folder, 0, trainer.num_steps, trainer.loader.steps, settings.log_every) as log:
        assert trainer.train(log)
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a further step depends on."""
    queue = {} if trainer.objective.queue is None else {"queue": trainer.objective.queue.storage}
    return {
        **trainer.model.state_dict(),
        **checkpoint.optimizer_tensors(trainer.optimizer),
        **queue,
    }


# --- the algorithm --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """SwAV on digits: enough steps to leave the untrained network behind."""
    settings = dataclasses.replace(DIGITS, epochs=15, batch_size=64)
    return trained(settings, tmp_path_factory.mktemp("healthy"))


def knn_of(trainer: Trainer) -> float:
    """Per cent of held-out digits that 20 neighbours name right."""
    settings, dataset = trainer.config, trainer.dataset
    features = evaluation.features_of(settings, dataset, trainer.model.backbone)
    return evaluation.knn(features, (dataset.train.labels, dataset.test.labels))


def test_swav_learns_and_raises_no_alarm(healthy: Trainer) -> None:
    untrained = build_model(healthy.config, 1, healthy.device)
    features = evaluation.features_of(healthy.config, healthy.dataset, untrained.backbone)
    labels = healthy.dataset.train.labels, healthy.dataset.test.labels
    assert knn_of(healthy) > 92
    assert knn_of(healthy) > evaluation.knn(features, labels) + 3
    assert read(healthy.folder)[-1]["usage_entropy"] > 0.85
    assert healthy.watch.raised == []


def test_without_the_sinkhorn_it_collapses_and_says_so(tmp_path: Path, healthy: Trainer) -> None:
    trainer = trained(dataclasses.replace(healthy.config, assignment="softmax"), tmp_path / "run")
    last = read(trainer.folder)[-1]
    assert last["usage_entropy"] < 0.3
    assert last["loss"] < 1.0  # the loss is low: it can be no alarm
    assert knn_of(trainer) < knn_of(healthy) - 5
    (alarm,) = trainer.watch.raised
    assert alarm.diagnosis == "collapse"
    (line,) = (line for line in read(trainer.folder) if "alarm" in line)
    assert line["alarm"]["remedy"] == "Use --assignment sinkhorn."


def test_equal_images_raise_the_alarm_under_the_sinkhorn(tmp_path: Path) -> None:
    settings = dataclasses.replace(DIGITS, epochs=12, width=4, crops="2x16", areas=((0.5, 1),))
    dataset = data.load(settings)
    blank = data.Part(torch.full_like(dataset.train.images, 0.5), dataset.train.labels)
    still = dataclasses.replace(settings, jitter=0.0, rotation=0.0)
    trainer = Trainer(still, dataclasses.replace(dataset, train=blank), tmp_path)
    with Log(tmp_path, 0, trainer.num_steps, trainer.loader.steps, 10) as log:
        trainer.train(log)
    assert "collapse" in [alarm.diagnosis for alarm in trainer.watch.raised]


# --- stopping and going on ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    settings = dataclasses.replace(SHORT, optimizer=optimizer)
    whole = trained(settings, tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()
    first = Trainer(settings, data.load(settings), folder)
    stop_at = first.loader.steps + 3
    step = first._train_step

    def stopping_step(crops, rows):
        if first.step == stop_at - 1:
            first.stop.ask()
        return step(crops, rows)

    first._train_step = stopping_step
    with Log(folder, 0, first.num_steps, first.loader.steps, 1) as log:
        assert not first.train(log)
    assert first.step == stop_at
    second = Trainer(settings, data.load(settings), folder)
    second.restore()
    assert second.step == stop_at
    with Log(folder, second.step, second.num_steps, second.loader.steps, 1) as log:
        assert second.train(log)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second)[name]), name
    untimed = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in read(folder)]
        for folder in (whole.folder, second.folder)
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 0)])
def test_a_signal_writes_a_checkpoint_and_resume_goes_on(
    tmp_path: Path, name: str, status: int
) -> None:
    code = (
        "import os, signal, sys\n"
        "from swav_trainer import cli, engine\n"
        "step = engine.Trainer._train_step\n"
        "def stop_after_five(self, *batch):\n"
        f"    if self.step == 5: os.kill(os.getpid(), signal.{name})\n"
        "    return step(self, *batch)\n"
        "engine.Trainer._train_step = stop_after_five\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    run = tmp_path / "run"
    options = ["--preset", "digits", "--epochs", "2", "--width", "4", "--output", str(run)]
    stopped = subprocess.run(
        [sys.executable, "-c", code, "train", *options], capture_output=True, text=True
    )
    assert stopped.returncode == status, stopped.stderr
    assert f"swav train --resume {run}" in stopped.stdout
    assert not (run / "evaluation.json").exists()
    assert cli.main(["train", "--resume", str(run)]) == 0
    steps = [line["step"] for line in read(run)]
    assert steps == sorted(set(steps))
    assert (run / "report.html").exists()
    assert cli.main(["train", *options]) == 2  # a run is never overwritten


def test_a_missing_or_corrupt_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SHORT, tmp_path / "config.toml")

    def error() -> str:
        assert cli.main(["train", "--resume", str(tmp_path)]) == 2
        return capsys.readouterr().err

    path = tmp_path / checkpoint.NAME
    assert "no checkpoint" in error()
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    assert "is corrupt" in error()
    good = Trainer(SHORT, data.load(SHORT), tmp_path)
    good.save()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is corrupt" in error()
    save(dataclasses.replace(SHORT, width=8), tmp_path / "config.toml")
    path.write_bytes(content)
    assert "does not fit its run" in error()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, {"x": torch.ones(3)}, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainerError, match=r"cannot write the checkpoint.*No space left"):
        checkpoint.save(path, {"x": torch.zeros(3)}, {"step": 2})
    tensors, state, problem = checkpoint.load(path)
    assert (state, problem) == ({"step": 1}, "")
    assert torch.equal(tensors["x"], torch.ones(3))
    assert [entry.name for entry in tmp_path.iterdir()] == [checkpoint.NAME]


@pytest.mark.parametrize("damage", ["a bit", "the end", "the state", "all"])
def test_a_damaged_checkpoint_is_seen_and_the_one_before_taken(tmp_path: Path, damage: str) -> None:
    path = tmp_path / checkpoint.NAME
    for step in (1, 2):
        checkpoint.save(path, {"x": torch.full((3,), step), "n": torch.tensor(7)}, {"step": step})
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[-1] ^= 1  # safetensors itself would not see it
    if damage == "the state":
        place = content.index(b'{\\"step\\": 2}')
        content[place : place + 13] = b'{\\"step\\": 9}'
    path.write_bytes(content[:-4] if damage == "the end" else content)
    if damage == "all":
        path.unlink()  # a crash between the two renames
    tensors, state, problem = checkpoint.load(path)
    assert state == {"step": 1}
    assert tensors["x"].tolist() == [1, 1, 1]
    assert "corrupt" in problem
    assert "the one before" in problem
    # a corrupt one is put aside: the next save must not take the good one's place with it
    assert checkpoint.load(path, set_aside=True)[1] == {"step": 1}
    assert not path.exists()
    checkpoint.save(path, {"x": torch.full((3,), 3)}, {"step": 3})
    path.unlink()
    assert checkpoint.load(path)[1] == {"step": 1}
    (tmp_path / checkpoint.PREVIOUS).unlink()
    with pytest.raises(TrainerError, match="corrupt|no checkpoint"):
        checkpoint.load(path)


def test_tensors_under_two_names_are_saved(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    checkpoint.save(tmp_path / checkpoint.NAME, {"a": shared, "b": shared}, {})
    tensors, _, _ = checkpoint.load(tmp_path / checkpoint.NAME)
    assert torch.equal(tensors["a"], tensors["b"])


def with_dropout() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
    )  # fmt: skip


def test_dropout_goes_on_as_if_the_run_had_not_stopped(tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, model=f"{__name__}:with_dropout")
    whole = trained(settings, tmp_path / "whole")
    half = tmp_path / "half"
    half.mkdir()
    first = Trainer(settings, data.load(settings), half)
    for _ in zip(range(5), first._steps(0, 0), strict=False):
        first.step += 1
    first.save()
    torch.rand(7)  # another process has drawn other numbers
    second = Trainer(settings, data.load(settings), half)
    second.restore()
    with Log(half, second.step, second.num_steps, second.loader.steps, 1) as log:
        second.train(log)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second)[name]), name


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, epochs=4, checkpoint_every=1)
    whole = trained(settings, tmp_path / "whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    save(settings, killed / "config.toml")
    code = (
        "import os, signal, sys\n"
        "from swav_trainer import cli, engine\n"
        "step, at = engine.Trainer._train_step, int(sys.argv.pop(1))\n"
        "def die_at(self, *batch):\n"
        "    if self.step == at: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *batch)\n"
        "engine.Trainer._train_step = die_at\n"
        "def die_while_saving(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if at < 0: os.fsync = die_while_saving\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    steps = whole.loader.steps
    first = Trainer(settings, data.load(settings), killed)
    first.save()  # at step 0
    for at in (steps + 2, -1, 2 * steps + 5):
        result = subprocess.run([sys.executable, "-c", code, str(at), "train", "--resume", killed])
        assert result.returncode == -9
    assert cli.main(["train", "--resume", str(killed)]) == 0
    last = Trainer(settings, data.load(settings), killed)
    assert last.restore() == ""
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(last)[name]), name
    assert [line["step"] for line in read(killed)] == list(range(1, 4 * steps + 1))


def test_a_torn_line_of_metrics_costs_that_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--preset", "digits", "--epochs", "1", "--width", "2", "--output", str(run)]
    assert cli.main(["train", *options]) == 0
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + '{"step": 11, "epo')
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert (run / "metrics.jsonl").read_text() == lines


def test_a_folder_without_a_checkpoint_may_be_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a=b"
    run.mkdir()
    save(SHORT, run / "config.toml")
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert "start it again with --output" in capsys.readouterr().err
    options = ["--preset", "digits", "--epochs", "1", "--width", "2", "--output", str(run)]
    assert cli.main(["train", *options]) == 0
    assert cli.main(["train", "--resume", str(run)]) == 0  # a name with = in it
    assert cli.main(["train", *options]) == 2
    assert "holds a run already" in capsys.readouterr().err


# --- what a run leaves behind ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on image files, with a hostile class name and a file that is no image."""
    images = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("plain", "<script>alert(1)<", "$x$ & y")):
        (images / name).mkdir()
        for i in range(70):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(images / name / f"{i}.png")
    settings = dataclasses.replace(load_preset("folder"), data=f"folder:{images}")
    dataset = data.load(settings)
    for part in (dataset.train, dataset.test):  # a bad file in each
        part.images.paths[0].write_bytes(b"no image")
    run = tmp_path_factory.mktemp("runs") / "files"
    options = ["--data", f"folder:{images}", "--output", str(run), "--epochs", "2"]
    options += [
        "--batch-size",
        "16",
        "--checkpoint-every",
        "1",
        "--num-prototypes",
        "8",
    ]
    options += ["--freeze-steps", "2", "--crops", "2x32+1x16"]
    assert cli.main(["train", *options]) == 0
    return run


def test_a_run_writes_what_the_readme_says(folder_run: Path) -> None:
    assert {path.name for path in folder_run.iterdir()} == {
        "config.toml", "metrics.jsonl", "evaluation.json", checkpoint.NAME, checkpoint.PREVIOUS,
        "machine.json", "report.html",
    }  # fmt: skip
    result = json.loads((folder_run / "evaluation.json").read_text())
    assert set(result) == {"swav", "pixels", "random", "seconds"}
    for kind in ("swav", "pixels", "random"):
        assert set(result[kind]) == {"knn20", "linear", "shot1", "shot10"}
        assert all(0 <= value <= 100 for value in result[kind].values())
    assert result["pixels"]["knn20"] == 100  # the colours tell the classes of readable files
    assert load(folder_run / "config.toml").arch == "resnet18"
    for line in read(folder_run):
        assert {"step", "epoch", "seconds", "learning_rate", "loss", "usage_entropy"} <= set(line)


def test_other_images_are_refused_in_an_old_run(
    folder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder_run, tmp_path / "run")
    settings = load(run / "config.toml")
    images = shutil.copytree(settings.folder, tmp_path / "images")
    save(dataclasses.replace(settings, data=f"folder:{images}"), run / "config.toml")
    assert cli.main(["train", "--resume", str(run)]) == 0  # the same images elsewhere
    next((images / "plain").iterdir()).unlink()
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert "are not those that the run" in capsys.readouterr().err


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_report_in_a_browser(folder_run: Path, tmp_path: Path, width: int) -> None:
    page = (folder_run / "report.html").as_uri()
    common = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
        f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=5000",
    ]  # fmt: skip
    result = subprocess.run(
        [*common, "--dump-dom", page], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in result.stderr  # neither errors nor blocked loads
    body = result.stdout
    for text in ("SwAV on", "20 neighbours", "same network, untrained", "Every setting"):
        assert text in body
    assert body.count("<svg") >= 4
    assert body.count('<img alt="') > 8
    assert "2 of 210 image files could not be read and were skipped" in body
    assert "No verdict on collapse: 20 steps are too few" in body
    assert "<script>alert" not in body
    assert "&lt;script&gt;alert(1)&lt;" in body


def test_the_report_loads_nothing_from_outside(folder_run: Path) -> None:
    text = (folder_run / "report.html").read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]*)""", text)
    assert links
    assert all(link.startswith("data:") or link == "" for link in links)
    assert "url(http" not in text
