"""One wrong bit, or a missing end, anywhere in a checkpoint: never taken for a good one."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from depth import count
from swav_trainer import checkpoint, sharded_checkpoint
from swav_trainer.errors import TrainerError
from test_trainer_sharding import two_checkpoints

FLIPS, TRUNCATIONS = 1000, 200
TENSORS = {
    "model.backbone.conv1.weight": torch.randn(8, 3, 3, 3),
    "model.prototypes.weight": torch.randn(30, 16, dtype=torch.float64),
    "optimizer.0.step": torch.tensor(7.0),
    "queue.position": torch.tensor([3, 40]),
}
STATE = {"step": 7, "data": "digits", "recent": [1.5, 2.25], "alarms": []}


def flipped(content: bytes, number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The content with a bit changed: each of the first ones, where the names are, then any."""
    chosen = random.Random(seed)
    for i in range(number):
        bit = i if i < min(number // 2, 8 * len(content)) else chosen.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(changed)


def truncated(content: bytes, number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    chosen = random.Random(seed)
    for _ in range(number):
        length = chosen.randrange(len(content))
        yield f"{length} bytes", content[:length]


def refusal(load: Callable[[], object]) -> str:
    """Why it is not taken; "" if it is."""
    try:
        load()
    except TrainerError as error:
        return str(error)
    return ""


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, TENSORS, STATE)
    content = path.read_bytes()
    _, state, problem = checkpoint.load(path)
    assert (state, problem) == (STATE, "")
    harmed = [*flipped(content, FLIPS, 0), *truncated(content, TRUNCATIONS, 1)]
    assert len(harmed) == FLIPS + TRUNCATIONS
    for what, bad in harmed:
        path.write_bytes(bad)
        assert "is corrupt" in refusal(lambda: checkpoint.load(path)), what


def test_what_is_taken_in_its_place_is_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, TENSORS, {"step": 1})
    checkpoint.save(path, TENSORS, {"step": 2})
    content = path.read_bytes()
    for what, bad in flipped(content, 20, 2):
        path.write_bytes(bad)
        _, state, problem = checkpoint.load(path)
        assert state == {"step": 1}, what
        assert f"{path} is corrupt" in problem
        assert "going on from the one before it" in problem


def test_a_folder_of_shards(tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    shutil.rmtree(tmp_path / checkpoint.PREVIOUS_SHARDS)
    files = sorted(path.iterdir())
    assert len(files) == 4
    for seed, file in enumerate(files):
        content = file.read_bytes()
        harmed = [
            *flipped(content, count(40, FLIPS) // len(files), seed),
            *truncated(content, count(8, TRUNCATIONS) // len(files), seed),
        ]
        for what, bad in harmed:
            file.write_bytes(bad)
            said = refusal(lambda: sharded_checkpoint.load(path, {}))
            assert "is corrupt" in said, (file.name, what)
        file.write_bytes(content)
    _, state, problem = sharded_checkpoint.load(path, {})
    assert (state, problem) == ({"step": 2}, "")


def test_a_checksum_of_another_state_does_not_do(tmp_path: Path) -> None:
    """All that the manifest and the header say of themselves is under the checksum."""
    path = two_checkpoints(tmp_path)
    shutil.rmtree(tmp_path / checkpoint.PREVIOUS_SHARDS)
    (path / sharded_checkpoint.STATE).write_text(json.dumps({"step": 3}, indent=1))
    with pytest.raises(TrainerError, match="another checksum: state.json"):
        sharded_checkpoint.load(path, {})
