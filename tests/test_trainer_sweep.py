"""`swav sweep`: which cells, what becomes of finished, stopped and failed runs, and the tables."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from swav_trainer import cli, settings
from swav_trainer.errors import TrainerError
from swav_trainer.settings import load_preset
from swav_trainer.sweep import cells

DIGITS = load_preset("digits")
# a preset of the user's: two epochs of a narrow net
TINY = (
    'base = "digits"\nepochs = 2\nwidth = 2\ncrops = "2x16"\nareas = [[0.5, 1.0]]\nlog_every = 1\n'
)


@pytest.fixture
def preset(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(TINY)
    return str(tmp_path / "tiny.toml")


def sweep(preset: str, output: Path, *options: str) -> int:
    return cli.main(["sweep", "--preset", preset, "--output", str(output), *options])


def test_seeds_are_no_setting_of_a_sweep() -> None:
    with pytest.raises(TrainerError, match="a sweep's seeds are named by --seeds"):
        cells.grid(load_preset("digits"), ["seed=3,4"])


def test_a_grid_is_run_once_and_compared(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--seeds", "0,3", "--set", "epsilon=0.03,0.1")
    assert sweep(preset, out, *options) == 0
    text = capsys.readouterr().out
    assert [f"[{i}/4] epsilon=" in text for i in range(1, 5)] == [True] * 4
    found = json.loads((out / "sweep.json").read_text())
    (group,) = found["groups"]
    assert [cell["label"] for cell in group["cells"]] == ["epsilon=0.03", "epsilon=0.1"]
    markdown = (out / "sweep.md").read_text()
    for cell, epsilon in zip(group["cells"], (0.03, 0.1), strict=True):
        scores = []
        for run, seed in zip(cell["runs"], (0, 3), strict=True):
            config = settings.load(out / run["folder"] / "config.toml")
            assert (config.epsilon, config.seed, config.width) == (epsilon, seed, 2)
            result = json.loads((out / run["folder"] / "evaluation.json").read_text())
            assert run["scores"] == result["swav"]
            scores.append(result["swav"]["knn20"])
        mean, sd = statistics.mean(scores), statistics.stdev(scores)
        assert f"| {cell['label']} | {mean:.1f} ± {sd:.1f} |" in markdown
    # again: the finished runs are taken as they are
    times = {path: path.stat().st_mtime_ns for path in out.rglob("evaluation.json")}
    assert len(times) == 4
    assert sweep(preset, out, "--seeds", "0", "--set", "epsilon=0.1") == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (cell,) = json.loads((out / "sweep.json").read_text())["groups"][0]["cells"]
    assert [run["seed"] for run in cell["runs"]] == [0]


def test_a_failed_run_is_named_and_the_others_go_on(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--seeds", "0", "--set", "batch_size=5000,128", "--jobs", "2")
    assert sweep(preset, out, *options) == 1
    text = capsys.readouterr().out
    assert "batch_size=5000, seed 0: failed: swav: 1438 training images make no batch" in text
    assert "batch_size=5000, seed 0 failed: read" in text
    row = next(x for x in (out / "sweep.md").read_text().splitlines() if "5000" in x)
    assert row == "| batch_size=5000 | – | – | – | – | – | failed (1 of 1) |"
    (group,) = json.loads((out / "sweep.json").read_text())["groups"]
    assert group["cells"][0]["runs"][0]["scores"] == {}
    assert group["cells"][1]["runs"][0]["scores"]["knn20"] > 20
    assert "exit status 2" in group["cells"][0]["runs"][0]["problem"]


def test_a_stopped_sweep_ends_its_run_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(TINY.replace("epochs = 2", "epochs = 30"))
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "swav_trainer", "sweep", "--preset", str(tmp_path / "slow.toml"),
        "--output", str(out), "--seeds", "0,1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = out / "preset" / "seed-0" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    run = out / "preset" / "seed-0"
    stopped = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (run / "checkpoint.safetensors").exists()  # it was asked to stop, and did
    assert "Stopped at step" in (run / "train.log").read_text()
    assert not (out / "preset" / "seed-1" / "metrics.jsonl").exists()
    assert stopped < 30 * 11
    assert sweep(str(tmp_path / "slow.toml"), out, "--seeds", "0") == 0
    steps = [json.loads(line).get("step") for line in metrics.read_text().splitlines()]
    assert steps[stopped - 1 : stopped + 1] == [stopped, stopped + 1]
    assert steps[-1] == 30 * 11


def test_folders_of_other_settings_are_refused(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "out" / "preset" / "seed-0"
    run.mkdir(parents=True)
    settings.save(DIGITS, run / "config.toml")
    assert sweep(preset, tmp_path / "out", "--seeds", "0,1") == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    assert not (tmp_path / "out" / "preset" / "seed-1").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "epsilon"), "--set wants name=value"),
        (("--set", "epsilonn=1"), "unknown setting 'epsilonn'; did you mean 'epsilon'"),
        (("--set", "epsilon=a"), "is neither a number nor a list"),
        (("--set", "epsilon=-1"), "epsilon must be above 0"),
        (("--set", "epochs=1", "--set", "epochs=2"), "epochs is named twice"),
        (("--seeds", "0,x"), "--seeds wants numbers"),
        (("--seeds", "1,1"), "--seeds names one twice"),
        (("--jobs", "0"), "--jobs must be at least 1"),
        (("--ablation", "quue"), "unknown ablation 'quue'.*did you mean 'queue'"),
        (("--ablation", "queue", "--set", "epochs=1"), "give no --set"),
        (("--preset", "digit"), "did you mean 'digits'"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_values_keep_the_type_of_their_setting() -> None:
    group = cells.grid(
        DIGITS,
        ["areas=[[0.3,1.0],[0.1,0.3]]", "head_batch_norm=true,false", "crops=2x16+1x8", "epochs=3"],
    )
    assert len(group.cells) == 2
    config = group.cells[1].config
    assert config.areas == ((0.3, 1.0), (0.1, 0.3))
    assert config.head_batch_norm is False
    assert (config.crops, config.epochs) == ("2x16+1x8", 3)
    assert os.sep not in group.cells[0].folder
    assert len({cell.folder for cell in group.cells}) == 2


@pytest.mark.parametrize("preset", ["digits", "mnist5k"])
def test_the_ablations_share_the_preset_and_differ_in_what_they_name(preset: str) -> None:
    base = load_preset(preset)
    groups = cells.ablation(base, "all")
    assert [group.title for group in groups] == list(cells.ABLATIONS)
    for group in groups:
        folders = [cell.folder for cell in group.cells]
        assert len(set(folders)) == len(folders) >= 2
        assert folders.count("preset") == 1
        (same,) = (cell.config for cell in group.cells if cell.folder == "preset")
        assert same == base
    crops = [cell.config.crops for cell in cells.ablation(base, "crops")[0].cells]
    assert crops == ["2x16", "2x16+2x10", "2x16+4x10"] or preset == "mnist5k"
    assert [g.title for g in cells.ablation(base, "queue,epsilon")] == ["queue", "epsilon"]
    with pytest.raises(TrainerError, match="unknown ablation"):
        cells.ablation(base, "")
