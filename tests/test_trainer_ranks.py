"""A run shared by several processes is the run of one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from swav_trainer import batch_norm, checkpoint, config, data, queues, ranks
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.log import Log, read
from swav_trainer.settings import load_preset
from torch import nn

SETTINGS = dataclasses.replace(
    load_preset("digits"), epochs=2, batch_size=64, width=2, dtype="float64", log_every=1,
    freeze_steps=3, queue_length=128, queue_start=0.2,
)  # fmt: skip
STEPS = 20  # two epochs of ten


def small(settings: config.Config) -> data.Dataset:
    """Digits enough for ten steps an epoch."""
    dataset = data.load(settings)
    part = data.Part(dataset.train.images[:650], dataset.train.labels[:650])
    return dataclasses.replace(dataset, train=part)


def train(settings: config.Config, folder: Path, resumes: bool = False) -> Trainer:
    """A run as `swav train` does it, in each of its processes."""
    trainer = Trainer(settings, small(settings), folder)
    if resumes:
        trainer.restore()
    if ranks.is_main():
        with Log(folder, trainer.step, trainer.num_steps, trainer.loader.steps, 1) as log:
            trainer.train(log)
    else:
        trainer.train(None)
    return trainer


def run_of_rank(rank: int, settings: config.Config, folder: Path, resumes: bool) -> Any:
    return train(settings, folder, resumes).model.state_dict()


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read(folder) if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, train(SETTINGS, folder).model.state_dict()


@pytest.mark.parametrize("world_size", [2, 4])
def test_many_processes_learn_what_one_learns(
    alone: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, world_size: int
) -> None:
    folder, weights = alone
    shared = tmp_path / "run"
    shared.mkdir()
    results = run_ranks(world_size, tmp_path, run_of_rank, SETTINGS, shared, False)
    wanted, got = losses(folder), losses(shared)
    assert len(got) == len(wanted) == STEPS
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1e-8
    for state in results:
        for name, tensor in weights.items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-8)


def train_from(content: bytes, metrics: Path, folder: Path) -> list[float]:
    """Losses of one process that goes on from a checkpoint."""
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(content)
    (folder / "metrics.jsonl").write_bytes((metrics / "metrics.jsonl").read_bytes())
    train(SETTINGS, folder, resumes=True)
    return losses(folder)


def test_a_run_of_two_goes_on_with_four_and_with_one(
    alone: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    half = dataclasses.replace(SETTINGS, epochs=1)
    shared = tmp_path / "run"
    shared.mkdir()
    run_ranks(2, tmp_path, run_of_rank, half, shared, False)
    content = (shared / "checkpoint.safetensors").read_bytes()
    wanted = losses(alone[0])
    for world_size, bound in ((4, 1e-6), (2, 1e-8)):
        (shared / "checkpoint.safetensors").write_bytes(content)
        folder = tmp_path / str(world_size)
        folder.mkdir()
        run_ranks(world_size, folder, run_of_rank, SETTINGS, shared, True)
        got = losses(shared)
        assert len(got) == STEPS
        # the schedule of the first half was that of a shorter run
        resumed = train_from(content, shared, tmp_path / f"alone-{world_size}")
        assert max(abs(a - b) for a, b in zip(got[10:], resumed[10:], strict=True)) <= bound
        assert max(abs(a - b) for a, b in zip(got[10:], wanted[10:], strict=True)) > 1e-3
    (shared / "checkpoint.safetensors").write_bytes(content)
    trainer = Trainer(SETTINGS, small(SETTINGS), shared)
    trainer.restore()
    rows = trainer.objective.queue.rows()
    assert rows.shape[1] == 128  # full, as the two halves were
    assert (rows.norm(dim=-1) - 1).abs().max() < 1e-6


def test_queue_rows_are_dealt_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    # two full rings of 4, the oldest row of each in place 1; rows are named by (age, ring)
    rings = torch.tensor([[30, 0, 10, 20], [31, 1, 11, 21]]).view(1, 8, 1)
    dealt = []
    monkeypatch.setattr(ranks, "count", lambda: 4)
    for index in range(4):
        monkeypatch.setattr(ranks, "index", lambda index=index: index)
        storage, position = queues.deal(rings, torch.tensor([1, 4]), 2)
        assert position.tolist() == [0, 2]
        dealt.append(storage.flatten().tolist())
    assert dealt == [[0, 20], [1, 21], [10, 30], [11, 31]]  # an old one before a new one


def batch_norm_of_rank(rank: int, x: torch.Tensor, sizes: list[int]) -> Any:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, affine=False)).double()
    batch_norm.synchronise(module, 0)
    mine = x.split(sizes)[rank].clone().requires_grad_()
    y = module(mine)
    (y * torch.arange(y[0].numel()).view(y[0].shape)).square().sum().backward()
    return y.detach(), mine.grad, module.state_dict()


def test_batch_norms_see_all_rows_even_of_unequal_shares(tmp_path: Path) -> None:
    x = torch.randn(9, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = x.clone().requires_grad_()
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, affine=False)).double()
    y = module(whole)
    (y * torch.arange(y[0].numel()).view(y[0].shape)).square().sum().backward()
    results = run_ranks(3, tmp_path, batch_norm_of_rank, x, [5, 1, 3])
    torch.testing.assert_close(torch.cat([result[0] for result in results]), y.detach())
    torch.testing.assert_close(torch.cat([result[1] for result in results]), whole.grad)
    for _, _, state in results:
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(state[name], tensor)


def test_shares_that_do_not_divide_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 3)
    monkeypatch.setattr(ranks, "index", lambda: 0)
    with pytest.raises(TrainerError, match=r"--batch-size 64 is shared by 3 processes.*multiple"):
        Trainer(SETTINGS, small(SETTINGS), tmp_path)


def torchrun(processes: int, *arguments: object, restarts: int = 0) -> subprocess.CompletedProcess:
    """Run `swav` or another program in some processes."""
    port = 20_000 + (os.getpid() + 7 * processes + 31 * restarts) % 20_000
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes,
        "--master-port", port, "--max-restarts", restarts, *arguments,
    ]  # fmt: skip
    return subprocess.run(map(str, command), capture_output=True, text=True, timeout=600)


def test_torchrun_trains_and_evaluates_once(tmp_path: Path) -> None:
    options = ["--preset", "digits", "--epochs", "1", "--width", "2", "--output", tmp_path / "run"]
    result = torchrun(2, "-m", "swav_trainer", "train", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("images to learn from") == 1
    assert "11 steps on 2 x cpu" in result.stdout
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["swav"]["knn20"] > 20


def test_a_lost_process_costs_a_restart(tmp_path: Path) -> None:
    """Rank 1 is killed in the second epoch; torchrun starts all again, in the same run."""
    program = tmp_path / "swav.py"
    program.write_text(
        "import os, signal, sys\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "from swav_trainer import cli, engine, ranks\n"
        "step = engine.Trainer._train_step\n"
        "def die(self, *batch):\n"
        "    if self.step == 14 and ranks.index() == 1 and not ranks.restarts():\n"
        "        open('killed', 'x').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *batch)\n"
        "if sys.argv.pop(1) == 'dies': engine.Trainer._train_step = die\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    options = ["train", "--preset", "digits", "--epochs", "2", "--width", "2"]
    options += ["--checkpoint-every", "1"]
    whole = torchrun(2, program, "lives", *options, "--output", "whole")
    assert whole.returncode == 0, whole.stderr
    lost = torchrun(2, program, "dies", *options, restarts=1)
    assert lost.returncode == 0, lost.stdout + lost.stderr
    assert (tmp_path / "killed").exists()
    folder = tmp_path / "runs" / "digits"  # no --output says where: torchrun has kept it
    assert [line["step"] for line in read(folder)] == [10, 20, 22]
    one, two = (checkpoint.load(x / checkpoint.NAME)[0] for x in (tmp_path / "whole", folder))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


class PartlyUsed(nn.Module):
    """A network that leaves a weight of its own alone."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(1, 6, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x).relu().mean((2, 3))


def test_processes_share_a_network_of_the_users(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, model=f"{__name__}:PartlyUsed", epochs=1)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    train(settings, alone)
    run_ranks(2, tmp_path, run_of_rank, settings, shared, False)
    assert len(losses(shared)) == 10
    assert max(abs(x - y) for x, y in zip(losses(alone), losses(shared), strict=True)) < 1e-8


def grouped_batch_norm_of_rank(rank: int, x: torch.Tensor, size: int) -> Any:
    module = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    batch_norm.synchronise(module, size)
    y = module(x.chunk(4)[rank])
    batch_norm.release(module)
    return y


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_batch_norms_may_be_shared_by_neighbours(size: int, tmp_path: Path) -> None:
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    groups = x.chunk(max(1, 4 // size))
    wanted = [nn.BatchNorm2d(3, affine=False)(group) for group in groups]
    results = run_ranks(4, tmp_path, grouped_batch_norm_of_rank, x, size)
    torch.testing.assert_close(torch.cat(results), torch.cat(wanted))


def test_groups_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 4)
    with pytest.raises(TrainerError, match="--batch-norm-group 3 does not divide the 4 processes"):
        batch_norm.synchronise(nn.Sequential(nn.BatchNorm1d(2)), 3)
