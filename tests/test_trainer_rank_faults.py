"""Processes of a run that are lost, hang or are told to stop: no work is lost, and all is told."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from depth import count
from faults import at, children, heard
from swav_trainer import checkpoint, cli
from swav_trainer.log import read
from test_trainer_ranks import torchrun

PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
os.chdir({folder!r})
import faults
from swav_trainer import cli, ranks
place, hit, rank, number = sys.argv[1:5]
if int(rank) == int(os.environ["RANK"]) and not ranks.restarts():
    def meet():
        open("met", "x").close()
        os.kill(os.getpid(), int(number))
    faults.at(place, int(hit), meet)
sys.exit(cli.main(sys.argv[5:]))
"""
OPTIONS = ["train", "--preset", "digits", "--epochs", "2", "--width", "4", "--checkpoint-every",
           "1", "--log-every", "1", "--queue-length", "128", "--queue-start",
           "0.3"]  # fmt: skip
STEPS = 11  # of an epoch


def program(folder: Path) -> Path:
    """`swav` that meets a signal in one of its processes, in their first attempt."""
    file = folder / "swav.py"
    file.write_text(PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder)))
    return file


def chosen() -> list[tuple[str, int, int]]:
    """Function, call and rank: each kind of moment in the second epoch, at each rank."""
    drawn = random.Random(0)
    trainer = "swav_trainer.engine:Trainer"
    kinds = [f"{trainer}.project", f"{trainer}.learn", f"{trainer}.end_step",
             "swav_kernels.modules:FeatureQueue.update", f"{trainer}._observe"]  # fmt: skip
    points = [(kinds[i % 5], STEPS + drawn.randrange(1, STEPS), i % 4) for i in range(8)]
    points = [(name, hit - 6 if "Queue" in name else hit, rank) for name, hit, rank in points]
    # rank 0 within its second save; rank 3 while rank 0 writes it
    return [*points, ("pathlib:Path.replace", 6, 0), (f"{trainer}.save", 2, 3)]


@pytest.mark.deep
@pytest.mark.parametrize(("place", "hit", "rank"), chosen(), ids=str)
def test_a_lost_rank_of_four_costs_a_restart_and_nothing_else(
    place: str, hit: int, rank: int, tmp_path: Path, undisturbed: Path
) -> None:
    options = (place, hit, rank, signal.SIGKILL.value, *OPTIONS, "--output", "run")
    result = torchrun(4, program(tmp_path), *options, restarts=2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "met").exists()
    folder = tmp_path / "run"
    assert [line["step"] for line in read(folder)] == list(range(1, 2 * STEPS + 1))
    one, two = (checkpoint.load(x / checkpoint.NAME)[0] for x in (undisturbed, folder))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four that no signal meets."""
    folder = tmp_path_factory.mktemp("undisturbed")
    options = ("os:fsync", 10**9, 0, 9, *OPTIONS, "--output", "run")
    result = torchrun(4, program(folder), *options)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


@pytest.mark.deep
def test_a_rank_that_hangs_is_told_of_within_a_minute(tmp_path: Path) -> None:
    met, said = tmp_path / "met", ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 4, "--master-port", port,
        program(tmp_path), "swav_trainer.engine:Trainer.learn", STEPS + 3, 1,
        signal.SIGSTOP.value, *OPTIONS, "--output", "run",
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "swav:" in line:
            said = line
            break
    seconds = time.time() - met.stat().st_mtime
    process.communicate(timeout=120)  # torchrun ends the one that hangs
    assert process.returncode != 0
    assert "another process of this run has gone or hangs" in said
    assert "go on from the last checkpoint with --resume run" in said
    assert seconds < 60
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME)[1]["step"] == STEPS


def rank_of(rank: int, world_size: int, port: int, told: int, folder: Path, *options: str) -> None:
    """`swav train` as torchrun starts it; the rank `told` gets SIGTERM in step 5."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if rank == told:
        at("swav_trainer.engine:Trainer.learn", 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with heard(folder / f"said-{world_size}-{rank}"):
        code = cli.main(list(options))
    os._exit(code)


def together(world_size: int, told: int, folder: Path, *options: str) -> list[int]:
    """Exit codes of the processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [(rank, world_size, port, told, folder, *options) for rank in range(world_size)]
    return children(ranks, rank_of)


def test_four_that_are_told_to_stop_exit_0_and_two_go_on_with_a_warning(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = count(2, 0)  # any of them
    assert together(4, told, tmp_path, *OPTIONS, "--output", str(run)) == [0] * 4
    tensors, state, problem = checkpoint.load(run / checkpoint.NAME)
    assert (state["step"], state["processes"], problem) == (5, 4, "")
    assert f"Go on with: swav train --resume {run}" in (tmp_path / "said-4-0").read_text()
    assert together(2, -1, tmp_path, "train", "--resume", str(run)) == [0] * 2
    said = (tmp_path / "said-2-0").read_text()
    assert "4 processes wrote the checkpoint and 2 go on with it" in said
    assert "go on with it" not in (tmp_path / "said-2-1").read_text()
    assert [line["step"] for line in read(run)] == list(range(1, 2 * STEPS + 1))
    assert checkpoint.load(run / checkpoint.NAME)[1]["processes"] == 2
    assert tensors.keys() == checkpoint.load(run / checkpoint.NAME)[0].keys()
