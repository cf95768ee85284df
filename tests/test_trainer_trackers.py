"""Trackers: what they get, and that none of them can stop a run. The packages are fakes."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from swav_trainer import cli, trackers
from swav_trainer.alarm import Alarm
from swav_trainer.errors import TrainerError
from swav_trainer.log import read
from swav_trainer.settings import load_preset

OPTIONS = ["--preset", "digits", "--epochs", "1", "--width", "2", "--num-prototypes", "3000"]


class FakeTensorBoard:
    """A SummaryWriter that remembers, and may break at some call."""

    breaks_at = ""

    def __init__(self, folder: str, purge_step: int) -> None:
        self.calls: list[tuple[Any, ...]] = [("init", folder, purge_step)]
        FakeTensorBoard.last = self

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self.calls.append((name, *arguments))
            if name == FakeTensorBoard.breaks_at:
                raise ConnectionError("the disk\nhas gone")

        return call


@pytest.fixture
def tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeTensorBoard]:
    """As if the package were installed."""
    installed(tmp_path, monkeypatch, "tensorboard")
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeTensorBoard  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(FakeTensorBoard, "breaks_at", "")
    return FakeTensorBoard


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str = "") -> None:
    """Put a package on the path, before a real one."""
    (folder / "site" / name).mkdir(parents=True)
    (folder / "site" / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(folder / "site")
    monkeypatch.delitem(sys.modules, name, raising=False)


def train(folder: Path, tracker: str) -> int:
    return cli.main(["train", *OPTIONS, "--output", str(folder), "--tracker", tracker])


def test_a_tracker_gets_what_is_written_down(tmp_path: Path, tensorboard) -> None:
    run = tmp_path / "run"
    assert train(run, "tensorboard") == 0
    calls = tensorboard.last.calls
    assert calls[0] == ("init", str(run / "tensorboard"), 1)
    assert calls[1][:2] == ("add_text", "settings")
    assert "'num_prototypes', 3000" in calls[1][2]
    assert calls[2][:2] == ("add_text", "batch far below K")  # the alarm
    assert "--queue-length" in calls[2][2]
    lines = {line["step"]: line for line in read(run) if "loss" in line}
    seen = {(step, name): value for _, name, value, step in calls[3:-1]}
    unseen = {"step", "epoch", "seconds"}
    assert seen == {
        (step, name): value
        for step, line in lines.items()
        for name, value in line.items()
        if name not in unseen and value is not None
    }
    assert calls[-1] == ("close",)


@pytest.mark.parametrize("breaks_at", ["add_scalar", "close"])
def test_a_tracker_that_dies_is_told_once_and_costs_nothing(
    tmp_path: Path, tensorboard, breaks_at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorboard.breaks_at = breaks_at
    run = tmp_path / "run"
    assert train(run, "tensorboard") == 0
    assert [call[0] for call in tensorboard.last.calls].count(breaks_at) == 1
    told = capsys.readouterr().out
    assert told.count("tracker tensorboard has failed") == 1
    assert "(ConnectionError: the disk)" in told
    assert (run / "evaluation.json").exists()
    assert read(run)[-1]["step"] == 11


def test_a_tracker_that_does_not_start_is_an_error(
    tmp_path: Path, tensorboard, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorboard.breaks_at = "add_text"
    assert train(tmp_path / "run", "tensorboard") == 2
    error = capsys.readouterr().err
    assert "--tracker tensorboard does not start (ConnectionError: the disk)" in error
    assert len(error.strip().splitlines()) == 1
    tensorboard.breaks_at = ""
    assert train(tmp_path / "run", "tensorboard") == 0  # the folder may be used


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_missing_is_told_before_anything_is_written(
    tmp_path: Path, name: str, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = trackers.importlib.util.find_spec
    missing = lambda module: None if module == name else find(module)  # noqa: E731
    monkeypatch.setattr(trackers.importlib.util, "find_spec", missing)
    assert train(tmp_path / "run", name) == 2
    assert f"pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(tmp_path / "run", "tensorbord")
    assert "tensorboard" in capsys.readouterr().err


WANDB = """
import json
class Run:
    def __getattr__(self, name):
        return lambda *a, **k: calls.append([name, a, k])
calls = []
def init(**options):
    calls.append(["init", [], options])
    return Run()
"""


def test_wandb_goes_on_under_the_same_name(tmp_path: Path, monkeypatch) -> None:
    installed(tmp_path, monkeypatch, "wandb", WANDB)
    settings = load_preset("digits")
    settings = type(settings)(**{**vars(settings), "tracker": "wandb"})
    told: list[str] = []
    for first_step in (0, 7):
        tracker = trackers.start(settings, tmp_path, first_step, told.append)
        tracker.numbers(first_step + 1, {"loss": 2.0, "view_agreement": float("nan")})
        tracker.alarm(Alarm(3, "collapse", "Because.", "Do."))
        tracker.close()
    calls = json.loads(json.dumps(sys.modules["wandb"].calls))
    first, second = calls[0][2], calls[4][2]
    assert first["id"] == second["id"] == (tmp_path / "wandb-id.txt").read_text()
    assert first["config"]["epsilon"] == settings.epsilon
    assert calls[1] == ["log", [{"loss": 2.0}], {"step": 1}]
    assert calls[2] == ["alert", [], {"title": "collapse", "text": "Because. Do."}]
    assert calls[3][0] == "finish"
    assert told == []


def test_no_tracker_is_no_trouble(tmp_path: Path) -> None:
    tracker = trackers.start(load_preset("digits"), tmp_path, 0, pytest.fail)
    tracker.numbers(1, {"loss": 1.0})
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainerError, match="pip install nowhere"):
        trackers.check("nowhere")
