"""Disks that are full or gone: what was written before is there, and the error says where."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from swav_trainer import checkpoint
from swav_trainer.errors import TrainerError

SIZES = """
import resource, sys
from pathlib import Path
import torch
from swav_trainer import checkpoint
from swav_trainer.errors import TrainerError

path = Path(sys.argv[1])
checkpoint.save(path, {"x": torch.ones(5000)}, {"step": 1})
size = path.stat().st_size
for limit in (0, 1, 7, 4096, size // 2, size - 4097, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoint.save(path, {"x": torch.zeros(5000)}, {"step": 2})
    except TrainerError as error:
        message = str(error)
    else:
        raise SystemExit(f"saved within {limit} bytes")
    assert str(path) in message and f"of {size} bytes" in message, message
    assert "bytes free" in message and "File too large" in message, message
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    tensors, state, problem = checkpoint.load(path)
    assert (state, problem, float(tensors["x"].min())) == ({"step": 1}, "", 1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
checkpoint.save(path, {"x": torch.zeros(5000)}, {"step": 2})
assert checkpoint.load(path)[1] == {"step": 2}
"""


def test_a_disk_that_fills_up_at_any_byte_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SIZES, str(tmp_path / checkpoint.NAME)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_a_run_on_a_full_disk_ends_with_the_reason(tmp_path: Path) -> None:
    """The metrics fit, the checkpoint does not."""
    code = (
        "import resource, sys\n"
        "from swav_trainer import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    options = ["--preset", "digits", "--epochs", "1", "--width", "4", "--output", "run"]
    result = subprocess.run(
        [sys.executable, "-c", code, "train", *options], cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "cannot write the checkpoint run/checkpoint.safetensors of" in result.stderr
    assert "Traceback" not in result.stderr
    left = sorted(x.name for x in (tmp_path / "run").iterdir())
    assert left == ["config.toml", "machine.json", "metrics.jsonl"]


def test_a_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoint.save(folder / checkpoint.NAME, {"x": torch.ones(3)}, {})
    shutil.rmtree(folder)
    with pytest.raises(TrainerError, match=r"cannot write .*run/checkpoint.*: No such file"):
        checkpoint.save(folder / checkpoint.NAME, {"x": torch.ones(3)}, {})
