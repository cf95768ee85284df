"""Disks that are full, fail, take no writing or are gone: what was saved stays, all is told."""

import errno
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from depth import count
from faults import at, child, heard
from swav_trainer import checkpoint, cli, durable, machine, settings
from swav_trainer import sharded_checkpoint as sharded
from swav_trainer.errors import TrainerError
from swav_trainer.log import METRICS, Log, read
from torch import Tensor

PLACES = {  # calls of one save, of a file and of a folder of shards, in their order
    "file": [("pathlib:Path.open", 1), ("os:fsync", 1), ("pathlib:Path.replace", 1),
             ("pathlib:Path.replace", 2), ("os:fsync", 2)],
    "shards": [("os:fsync", 1), ("os:fsync", 2), ("pathlib:Path.open", 4), ("os:fsync", 3),
               ("os:fsync", 4), ("os:fsync", 5), ("shutil:rmtree", 1), ("pathlib:Path.replace", 1),
               ("pathlib:Path.replace", 2), ("os:fsync", 6)],
}  # fmt: skip
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOENT)


def tensors(step: int) -> dict[str, Tensor]:
    return {f"x{i}": torch.full((300 * i,), float(step)) for i in range(1, 6)}


class Form:
    """A checkpoint in one of its forms, of which two have been written."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.module: Any = checkpoint if kind == "file" else sharded
        self.path = folder / (checkpoint.NAME if kind == "file" else checkpoint.SHARDS)
        self.save(1)
        self.save(2)
        self.names = self._names()

    def save(self, step: int) -> None:
        self.module.save(self.path, tensors(step), {"step": step})

    def load(self) -> tuple[dict[str, Tensor], int, str]:
        places = () if self.module is checkpoint else ({},)
        found, state, problem = self.module.load(self.path, *places)
        return found, state["step"], problem

    def _names(self) -> set[str]:
        return {entry.name for entry in self.path.parent.iterdir()}

    def survives(self, fault: Callable[[], Any], *reasons: str) -> None:
        """A third save, under a fault, says why it failed, and costs neither file nor room."""
        fault()
        try:
            self.save(3)
        except TrainerError as error:
            said = str(error)
        else:
            raise AssertionError("saved in spite of the fault")
        assert said.startswith(f"cannot write the checkpoint {self.path}"), said
        assert any(reason in said for reason in reasons), said
        assert " bytes free: " in said, said
        assert self.module is sharded or f" of {self._size()} bytes, " in said, said
        assert said.endswith("; a checkpoint written before is intact"), said
        assert self._names() <= self.names, "something was left"
        found, step, _ = self.load()
        # a fault behind the last rename leaves the third one, which was whole
        assert step in (2, 3)
        for name, tensor in tensors(step).items():
            assert torch.equal(found[name], tensor)

    def _size(self) -> int:
        return next(self.path.parent.glob("checkpoint*.safetensors")).stat().st_size


def failing(place: str, hit: int, number: int) -> None:
    """Let the disk fail at that call."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    at(place, hit, fail)


def under(kind: str, folder: Path, place: str, hit: int, number: int) -> None:
    form = Form(kind, folder)
    form.survives(partial(failing, place, hit, number), os.strerror(number))


FAULTS = [(kind, *place, number) for kind, places in PLACES.items()
          for place in places for number in ERRORS]  # fmt: skip


@pytest.mark.parametrize(("kind", "place", "hit", "number"), FAULTS[:: count(7, 1)], ids=str)
def test_a_disk_that_fails_in_any_call(
    kind: str, place: str, hit: int, number: int, tmp_path: Path
) -> None:
    assert child(under, kind, tmp_path, place, hit, number) == 0


def limit(size: int) -> None:
    """No file may be longer from now on: a disk that is full at that byte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_at(kind: str, folder: Path, number: int) -> None:
    form = Form(kind, folder)
    files = [form.path] if form.path.is_file() else list(form.path.iterdir())
    longest = max(file.stat().st_size for file in files)
    drawn = random.Random(0)
    sizes = [0, 1, longest - 1, *(drawn.randrange(longest) for _ in range(number))]
    for size in sizes[:number]:
        # torch's writer of shards may hide the system's reason
        hidden = ["the disk took a part of it only"] if kind == "shards" else []
        form.survives(partial(limit, size), os.strerror(errno.EFBIG), *hidden)
        assert form.load()[1:] == (2, "")
    limit(longest)
    form.save(3)
    assert form.load()[1:] == (3, "")


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_a_disk_that_is_full_at_any_byte(kind: str, tmp_path: Path) -> None:
    assert child(full_at, kind, tmp_path, count(6, 50)) == 0


@pytest.mark.parametrize("kind", ["file", "shards"])
@pytest.mark.parametrize("what", ["is gone", "is a file", "takes no writing"])
def test_a_folder_that_cannot_be_written_to(kind: str, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    form = Form(kind, folder)
    away = folder.rename(tmp_path / "away")
    if what == "is a file":
        folder.write_text("")
    elif what == "takes no writing":
        # of the kernel's, which not even root may write to
        form.path = Path("/proc/self") / form.path.name
    with pytest.raises(TrainerError, match=f"cannot write the checkpoint {form.path}"):
        form.save(3)
    form.path = away / form.path.name
    assert form.load()[1:] == (2, "")
    assert not list(tmp_path.rglob("*.tmp"))


# --- the other files of a run ---------------------------------------------------------------------


def pieces(folder: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    config = settings.load_preset("digits")
    yield folder / settings.FILE, lambda: settings.save(config, folder / settings.FILE)
    yield folder / machine.FILE, lambda: machine.write(folder, torch.device("cpu"))
    yield folder / METRICS, lambda: Log(folder, 5, 10, 10, 1).__exit__(None, None, None)


def write_in_vain(folder: Path) -> None:
    for path, write in pieces(folder):
        path.write_text('{"step": 3}\n')
        limit(11)
        with pytest.raises(TrainerError, match=f"cannot write {path} of .* bytes, with .* free: "):
            write()
        limit(resource.RLIM_INFINITY)
        assert path.read_text() == '{"step": 3}\n'
        write()
        assert path.read_text() != ""
        assert not list(folder.glob("*.tmp"))


def test_what_is_written_beside_checkpoints_is_whole_or_as_before(tmp_path: Path) -> None:
    assert child(write_in_vain, tmp_path) == 0


def log_until_full(folder: Path) -> None:
    limit(2000)
    with Log(folder, 0, 100, 100, 1) as opened:
        for step in range(1, 100):
            opened.step(step, 1.0, 0.1, {"loss": 1.0, "usage_entropy": 1.0})


def told_of_full_metrics(folder: Path) -> None:
    with pytest.raises(TrainerError, match=f"cannot write {folder / METRICS} of .*File too large"):
        log_until_full(folder)


def test_metrics_on_a_full_disk_keep_every_whole_line(tmp_path: Path) -> None:
    assert child(told_of_full_metrics, tmp_path) == 0
    assert (tmp_path / METRICS).stat().st_size == 2000
    steps = [line["step"] for line in read(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 10


def run_into(folder: Path, place: str, hit: int, act: Callable[[], None]) -> None:
    """`swav train` in a folder that something happens to."""
    at(place, hit, act)
    options = ["--preset", "digits", "--epochs", "2", "--width", "4", "--checkpoint-every", "1"]
    with heard(folder / "said"):
        code = cli.main(["train", *options, "--output", str(folder / "run")])
    os._exit(code)


@pytest.mark.slow
def test_a_run_whose_folder_vanishes_ends_with_the_reason(tmp_path: Path) -> None:
    run = tmp_path / "run"
    vanish = partial(shutil.rmtree, run)
    assert child(run_into, tmp_path, "swav_trainer.engine:Trainer.learn", 5, vanish) == 2
    said = (tmp_path / "said").read_text()
    path = run / checkpoint.NAME
    assert f"swav: cannot write the checkpoint {path} of " in said
    assert "No such file or directory" in said
    assert "Traceback" not in said
    assert not run.exists()


def fail_writing() -> None:
    failing("os:fsync", 1, errno.EIO)


@pytest.mark.slow
def test_a_run_on_a_disk_that_begins_to_fail_keeps_what_it_had(tmp_path: Path) -> None:
    assert child(run_into, tmp_path, "swav_trainer.engine:Trainer.learn", 15, fail_writing) == 2
    said = (tmp_path / "said").read_text()
    assert f"cannot write the checkpoint {tmp_path / 'run' / checkpoint.NAME} of " in said
    assert "Input/output error; a checkpoint written before is intact" in said
    _, state, problem = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
    assert (state["step"], problem) == (11, "")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_has_its_name_only_when_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut would leave an empty file under a good name."""
    path, done = tmp_path / "file", []
    flush, replace = os.fsync, Path.replace

    def seen_flush(number: int) -> None:
        done.append(("flush", os.readlink(f"/proc/self/fd/{number}"), os.fstat(number).st_size))
        flush(number)

    def seen_replace(one: Path, other: Path) -> Path:
        done.append(("rename", str(one), str(other)))
        return replace(one, other)

    monkeypatch.setattr(os, "fsync", seen_flush)
    monkeypatch.setattr(Path, "replace", seen_replace)
    durable.write(path, b"x" * 5000)
    folder_size = tmp_path.stat().st_size
    assert done == [
        ("flush", f"{path}.tmp", 5000), ("rename", f"{path}.tmp", str(path)),
        ("flush", str(tmp_path), folder_size),
    ]  # fmt: skip
