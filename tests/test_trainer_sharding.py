"""A network in shards learns what a whole one learns, and its checkpoints serve any processes."""

import contextlib
import dataclasses
import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from safetensors.torch import load_file
from swav_trainer import (
    checkpoint,
    cli,
    config,
    data,
    ranks,
    saved,
    shard_index,
    sharded_checkpoint,
    sharding,
)
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.settings import FILE, load, load_preset
from test_trainer_ranks import losses, small, torchrun, train
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

SETTINGS = dataclasses.replace(
    load_preset("digits"), epochs=2, batch_size=64, width=2, dtype="float64", log_every=1,
    crops="2x12+1x8", areas=((0.3, 1.0), (0.1, 0.3)), freeze_steps=2, queue_length=128,
    queue_start=0.2, clip_gradient=0.5, checkpoint_every=1, shard=True,
)  # fmt: skip
FIVE = dataclasses.replace(SETTINGS, batch_size=128)  # steps an epoch, in place of ten


IN_COLOUR = {
    "data": "synthetic:40x24", "batch_size": 8, "crops": "2x16", "areas": ((0.3, 1.0),),
    "queue_length": 0, "rotation": 0.0, "gamma": 0.0, "workers": 1,
}  # fmt: skip


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_losses(settings: config.Config, folder: Path, steps: int) -> tuple[list[float], Trainer]:
    in_memory = settings.data == SETTINGS.data
    trainer = Trainer(settings, small(settings) if in_memory else data.load(settings), folder)
    for group in trainer.optimizer.param_groups:
        group["foreach"] = True  # as on a GPU: all tensors of a group in one call
    trainer.model.train()
    values = []
    for loss, _ in trainer._steps(0, 0):
        trainer.step += 1
        values.append(float(ranks.mean(loss)))
        if trainer.step == steps:
            break
    return values, trainer


def both_ways(rank: int, settings: config.Config, folder: Path, steps: int) -> Any:
    """Losses with the network in shards and whole, and the share that this process held."""
    got, trainer = first_losses(settings, folder, steps)
    moments = [x for s in trainer.optimizer.state.values() for x in s.values() if x.ndim]
    prototypes = {id(head.weight) for head in trainer.model.prototype_heads}
    network = [p for p in trainer.model.parameters() if id(p) not in prototypes]
    held = {
        name: sum(x.to_local().numel() for x in tensors) / sum(x.numel() for x in tensors)
        for name, tensors in {
            "weights": network,
            "gradients": [p.grad for p in network],
            "moments": [x for x in moments if isinstance(x, DTensor)],
        }.items()
    }
    assert isinstance(trainer.shards, sharding.Shards)
    wanted, other = first_losses(dataclasses.replace(settings, shard=False), folder, steps)
    assert other.shards is None
    return got, wanted, held, trainer.model.prototypes.weight.detach()


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        # the one optimiser that sees a gradient's scale, and so how it was clipped
        ({"optimizer": "sgd", "learning_rate": 0.5, "clip_gradient": 0.1}, 10),
        ({"optimizer": "lars", "learning_rate": 0.5, "decay_vectors": True}, 3),
        ({"effective_batch": 128, "recompute": True, "heads": 2}, 3),
        ({"method": "deepcluster", "queue_length": 0, "batch_norm_group": 1}, 3),
        ({"arch": "resnet18_cifar", **IN_COLOUR}, 2),
        ({"arch": "vit_s16", "recompute": True, **IN_COLOUR}, 2),
    ],
)
def test_shards_learn_what_whole_networks_learn(
    change: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, **change)
    results = run_ranks(2, tmp_path, both_ways, settings, tmp_path, steps)
    for got, wanted, held, prototypes in results:
        assert len(got) == steps
        assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1e-8
        assert abs(got[0] - got[-1]) > 1e-3  # it moved
        for share in held.values():
            assert 0.45 < share < 0.55
        assert torch.equal(prototypes, results[0][3])


def exchanges_of_rank(rank: int, folder: Path) -> list[int]:
    """How many weights of the network have gradients: of a part, and of the last part."""
    trainer = Trainer(SETTINGS, small(SETTINGS), folder)
    apart = [m for m in trainer.model.modules() if isinstance(m, FSDPModule)]
    assert apart == [trainer.model, *trainer.model.backbone.blocks, trainer.model.head]
    crops = next(iter(trainer.loader.batches(0)))
    backbone = list(trainer.model.backbone.parameters())
    seen = []
    for context in (trainer.shards.without_exchange(), contextlib.nullcontext()):
        with context:
            trainer.project(trainer.network, crops).square().sum().backward()
        seen.append(sum(p.grad is not None for p in backbone))
    return [*seen, len(backbone)]


def test_parts_of_a_batch_but_the_last_exchange_no_gradients(tmp_path: Path) -> None:
    for first, last, count in run_ranks(2, tmp_path, exchanges_of_rank, tmp_path):
        assert (first, last) == (0, count)


def weights_of_rank(rank: int, settings: config.Config, folder: Path, resumes: bool) -> Any:
    trainer = train(settings, folder, resumes)
    return {name: whole(x) for name, x in trainer.model.state_dict().items()}


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_run_goes_on_from_the_good_checkpoint_with_two_processes_and_with_one(
    tmp_path: Path,
) -> None:
    """The newest one is damaged, so that the second epoch is learned again."""
    run = tmp_path / "run"
    run.mkdir()
    wanted = run_ranks(2, tmp_path, weights_of_rank, FIVE, run, False)[0]
    model, problem = saved.trained(run, FIVE, 1, torch.device("cpu"))
    assert problem == ""
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    expected = losses(run)
    assert len(expected) == 10
    damage(run / checkpoint.SHARDS / "__1_0.distcp")
    alone = tmp_path / "alone"
    shutil.copytree(run, alone)

    got = run_ranks(2, tmp_path / "run", weights_of_rank, FIVE, run, True)[0]
    assert (run / checkpoint.CORRUPT_SHARDS).is_dir()
    assert losses(run) == expected
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name

    trainer = Trainer(FIVE, small(FIVE), alone)
    assert "__1_0.distcp); going on from the one before it" in trainer.restore()
    assert trainer.step == 5
    got = train(FIVE, alone, resumes=True).model.state_dict()
    assert losses(alone) != expected
    assert max(abs(a - b) for a, b in zip(losses(alone), expected, strict=True)) <= 1e-8
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-8)


def test_a_run_of_two_goes_on_in_the_shards_of_four(tmp_path: Path) -> None:
    """And one of one, which holds the network whole, in the shards of two."""
    run = tmp_path / "run"
    run.mkdir()
    wanted = run_ranks(2, tmp_path, weights_of_rank, FIVE, run, False)[0]
    expected = losses(run)
    for processes, before in ((4, checkpoint.PREVIOUS_SHARDS), (2, checkpoint.PREVIOUS_SHARDS)):
        shutil.rmtree(run / checkpoint.SHARDS)
        (run / before).rename(run / checkpoint.SHARDS)  # that of step 5
        if processes == 2:
            train(dataclasses.replace(FIVE, epochs=1), run, resumes=True).save()
        kept = shutil.copytree(run / checkpoint.SHARDS, tmp_path / f"kept-{processes}")
        folder = tmp_path / str(processes)
        folder.mkdir()
        got = run_ranks(processes, folder, weights_of_rank, FIVE, run, True)
        assert json.loads((kept / "state.json").read_text())["step"] == 5
        assert json.loads((run / checkpoint.SHARDS / "state.json").read_text())["processes"] == (
            processes
        )
        assert max(abs(a - b) for a, b in zip(losses(run), expected, strict=True)) <= 1e-8
        for state in got:
            for name, tensor in wanted.items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-8)


def test_torchrun_trains_in_shards_and_one_process_uses_the_run(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "weights.safetensors"
    options = ["--preset", "digits", "--epochs", "1", "--width", "2", "--shard", "--output", run]
    result = torchrun(2, "-m", "swav_trainer", "train", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "UserWarning" not in result.stderr
    scores = tmp_path / "scores.json"
    assert cli.main(["eval", str(run), "--json-file", str(scores)]) == 0
    trained = json.loads((run / "evaluation.json").read_text())
    trained.pop("seconds")
    assert json.loads(scores.read_text()) == trained
    assert cli.main(["export", str(run), str(file)]) == 0
    backbone = saved.trained(run, load(run / FILE), 1, torch.device("cpu"))[0].backbone
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, backbone.state_dict()[name])


def two_checkpoints(folder: Path) -> Path:
    path = folder / checkpoint.SHARDS
    for step in (1, 2):
        tensors = {"x": torch.full((5,), step), "y.z": torch.ones(())}
        sharded_checkpoint.save(path, tensors, {"step": step})
    return path


FILES = ["__0_0.distcp", ".metadata", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_any_damage_is_seen_and_the_one_before_taken(name: str, harm: Any, tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    tensors, state, problem = sharded_checkpoint.load(path, {})
    assert (state, problem, tensors["x"].tolist()) == ({"step": 2}, "", [2] * 5)
    harm(path / name)
    tensors, state, problem = sharded_checkpoint.load(path, {}, set_aside=True)
    assert (state, tensors["x"].tolist()) == ({"step": 1}, [1] * 5)
    assert "checkpoint is corrupt" in problem
    shutil.rmtree(tmp_path / checkpoint.PREVIOUS_SHARDS)
    with pytest.raises(TrainerError, match="no checkpoint"):  # the damaged one was set aside
        sharded_checkpoint.load(path, {})


def test_a_disk_that_fails_at_any_moment_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = two_checkpoints(tmp_path)
    flush, good = os.fsync, 0

    def failing(number: int) -> None:
        nonlocal good
        good -= 1
        if good < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(number)

    def message() -> str:
        try:
            sharded_checkpoint.save(path, {"x": torch.zeros(5)}, {"step": 3})
        except TrainerError as error:
            return str(error)
        return ""

    monkeypatch.setattr(os, "fsync", failing)
    steps = []
    while said := message():
        assert said.startswith(f"cannot write the checkpoint {path}, with ")
        assert "No space left" in said
        assert not list(tmp_path.glob("*.tmp"))
        _, state, problem = sharded_checkpoint.load(path, {})
        assert problem == ""
        steps.append(state["step"])
        good = len(steps)
    # shards, index, state, manifest, the new folder, and the one that holds it, after the renames
    assert steps == [2, 2, 2, 2, 2, 3]


def save_of_rank(rank: int, path: Path) -> None:
    tensors = {f"x{i}": torch.full((1000,), float(rank)) for i in range(8)}
    sharded_checkpoint.save(path, tensors, {"rank": rank})


def test_what_processes_hold_whole_is_that_of_the_main_one(tmp_path: Path) -> None:
    """Statistics of batch norms may differ: a mean must not come with another's variance."""
    run_ranks(2, tmp_path, save_of_rank, tmp_path / checkpoint.SHARDS)
    tensors, state, _ = sharded_checkpoint.load(tmp_path / checkpoint.SHARDS, {})
    assert state == {"rank": 0}
    assert all(not tensor.any() for tensor in tensors.values())


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [Code(), {"x": 1}, torch.nn.Linear])
def test_an_index_of_anything_else_is_refused(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index").write_bytes(pickle.dumps(content))
    with pytest.raises(TrainerError, match="index is refused|not an index of tensors"):
        shard_index.read(tmp_path / "index")
    assert not (tmp_path / "ran").exists()


class Yours(nn.Module):
    """A network whose parts are not called as modules are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3), nn.Linear(6, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, self.first.weight).relu().mean((2, 3))
        return x @ self.second.weight.T


class Scalar(Yours):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def yours_of_rank(rank: int, folder: Path) -> Any:
    settings = dataclasses.replace(SETTINGS, model=f"{__name__}:Yours")
    got, _ = first_losses(settings, folder, 3)
    settings = dataclasses.replace(SETTINGS, model=f"{__name__}:Scalar")
    with pytest.raises(TrainerError, match=r"--shard cannot deal this network out: .*scalar"):
        Trainer(settings, small(settings), folder)
    return got


def test_a_network_of_the_users_is_dealt_out_as_a_whole(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, model=f"{__name__}:Yours")
    wanted, _ = first_losses(settings, tmp_path, 3)
    for got in run_ranks(2, tmp_path, yours_of_rank, tmp_path):
        assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1e-8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compile": True}, "compile must be false where shard is true"),
        ({"autocast": "float16", "dtype": "float32"}, "autocast must be off or bfloat16 where"),
    ],
)
def test_what_shards_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        dataclasses.replace(SETTINGS, **change)
