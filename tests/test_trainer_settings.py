"""Settings and the command line: presets, options, and what a user may get wrong."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from swav_trainer import cli
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.settings import load, load_preset, preset_for, preset_names, save

import swav_kernels as sk


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on a mistake, in one line."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # the option parser
        code = stop.code
    assert code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_presets_hold_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"digits", "folder", "mnist5k"} <= set(preset_names())
    for name in preset_names():
        load_preset(name)
    assert capsys.readouterr().err == ""  # none is older than a setting
    for name in ("digits", "mnist5k"):
        assert load_preset(name).data == name
    folder = load_preset("folder")
    assert (folder.arch, folder.crops) == ("resnet18", "2x96+4x48")  # fmt: skip


@pytest.mark.parametrize(
    ("data", "preset"),
    [(None, "mnist5k"), ("digits", "digits"), ("mnist5k", "mnist5k"), ("folder:/x", "folder")],
)
def test_the_data_pick_the_preset(data: str | None, preset: str) -> None:
    assert preset_for(data) == preset


def test_settings_survive_a_file(tmp_path: Path) -> None:
    values = dataclasses.replace(
        load_preset("digits"), epsilon=1e-3, data='folder:/a "b" \\ c\x7f', flip=1
    )
    save(values, tmp_path / "config.toml")
    assert load(tmp_path / "config.toml") == values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"effective_batch": 100}, "effective_batch must be 0 or at least batch_size, 128"),
        ({"effective_batch": 512, "queue_length": 256}, "at least the images in a step, 512"),
        ({"flip": 1.5}, "flip must be from 0 to 1"),
        ({"optimizer": "adamm"}, "optimizer must be one of adamw, sgd.*did you mean 'adamw'"),
        ({"areas": ((0.9, 0.2), (0.1, 0.2))}, "areas must be rising shares"),
        ({"queue_length": 5}, "queue_length must be 0 or at least the images in a step"),
        ({"epochs": 2.5}, "epochs must be of type int"),
        ({"data": "minst5k"}, "unknown data.*did you mean 'mnist5k'"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        dataclasses.replace(load_preset("digits"), **change)


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(TrainerError, match="cannot read"):
        load(path)
    path.write_text("epochs = = 3")
    with pytest.raises(TrainerError, match="not a TOML file"):
        load(path)
    path.write_text("epoch = 3")
    with pytest.raises(TrainerError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        load(path)
    path.write_text("epochs = 3")
    with pytest.raises(TrainerError, match="lacks the settings data"):
        load(path)


def test_a_file_older_than_a_setting_is_read_with_what_runs_did_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = load_preset("digits")
    path = tmp_path / "config.toml"
    save(values, path)
    assert capsys.readouterr().err == ""
    newer = [f.name for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING]
    assert {"shard", "overlap", "heads", "model"} <= set(newer)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if line.partition(" ")[0] not in newer))
    assert load(path) == values  # the preset asks for none of them
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert 'config.toml is older than some settings, taken as loader = "threads", ' in said
    assert all(f"{name} = " in said for name in newer)
    path.write_text(path.read_text() + "shards = true\n")
    with pytest.raises(TrainerError, match="unknown setting 'shards'; did you mean 'shard'"):
        load(path)


def test_mistakes_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unknown command 'trian'" in error_of(["trian"], capsys)
    assert "did you mean 'mnist5k'" in error_of(["train", "--preset", "mnist5"], capsys)
    assert "--preset needs a value" in error_of(["train", "--preset"], capsys)
    assert "--epochs" in error_of(["train", "--epoch", "3"], capsys)
    assert "epochs" in error_of(["train", "--epochs", "many"], capsys)
    assert "epsilon must be above 0" in error_of(["train", "--epsilon", "-1"], capsys)
    assert "no folder" in error_of(["train", "--data", f"folder:{tmp_path}/none"], capsys)
    assert "no images in" in error_of(["train", "--data", f"folder:{tmp_path}"], capsys)
    assert "needs --data" in error_of(["train", "--preset", "folder"], capsys)
    assert "no folder" in error_of(["train", "--resume", str(tmp_path / "none")], capsys)
    assert "give no other option" in error_of(
        ["train", "--resume", str(tmp_path), "--epochs", "3"], capsys
    )
    assert "folder: needs PATH" in error_of(["train", "--data", "folder:"], capsys)
    assert "3 channels" in error_of(
        ["train", "--preset", "digits", "--arch", "resnet18", "--output", str(tmp_path / "a")],
        capsys,
    )
    assert "do not fit in memory" in error_of(
        ["train", "--preset", "digits", "--num-prototypes", str(10**12), "--output",
         str(tmp_path / "a")], capsys,
    )  # fmt: skip
    assert "File name too long" in error_of(
        ["train", "--preset", "digits", "--output", str(tmp_path / ("x" * 300))], capsys
    )
    monkeypatch.setenv("SWAV_KERNELS_BACKEND", "cqu")
    assert "did you mean 'cpu'" in error_of(
        ["train", "--preset", "digits", "--output", str(tmp_path / "a")], capsys
    )
    monkeypatch.delenv("SWAV_KERNELS_BACKEND")
    assert "device 'cuba'" in error_of(
        ["train", "--preset", "digits", "--device", "cuba", "--output", str(tmp_path / "a")], capsys
    )
    assert "backend" in error_of(
        ["train", "--preset", "digits", "--backend", "cuda", "--output", str(tmp_path / "b")],
        capsys,
    )
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "digits", "--hue", "0.1"], "--hue must be 0 for --data digits"),
        (
            ["--data", "synthetic:90x24", "--rotation", "9"],
            "--rotation must be 0 .* are not turned",
        ),
        (
            ["--preset", "digits", "--queue-length", "256", "--queue-epoch", "99"],
            "queue_epoch must",
        ),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, error_of(["train", *options], capsys))


def test_presets_and_doctor_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("presets", "doctor"):
        assert cli.main([name, "--help"]) == 0
        assert f"usage: swav {name}" in capsys.readouterr().out


def test_help_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert cli.main(["--help"]) == 0
    assert "swav doctor" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert sk.__version__ in capsys.readouterr().out


def test_doctor_says_what_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert "backend cpu        yes" in capsys.readouterr().out


def test_the_core_needs_no_extra() -> None:
    code = """
import sys
for name in ("tyro", "rich", "safetensors", "matplotlib", "cv2", "sklearn", "mlxtend"):
    sys.modules[name] = None
from swav_trainer import cli
assert cli.main(["doctor"]) == 0
assert cli.main(["train"]) == 2
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "needs tyro, rich, safetensors" in result.stderr
    assert "pip install 'swav-kernels[demo]'" in result.stderr
