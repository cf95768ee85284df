"""Processes of a Gloo group, each of which runs a function of the test."""

import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEADLINE = 240  # seconds for all ranks together: the machine may be busy


def run_ranks(
    world_size: int, folder: Path, function: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """Call function(rank, *arguments) on every rank of a Gloo group; the results in rank order."""
    torch.set_num_threads(1)  # forked children of a parent with a thread pool may hang
    context = mp.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, folder, function, arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + DEADLINE
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for rank in late:
        ranks[rank].kill()
    assert not late, f"ranks {late} did not finish within {DEADLINE} s"
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]
    errors = [result for result in results if isinstance(result, str)]
    assert not errors, "\n".join(errors)
    return results


def _rank(
    rank: int,
    world_size: int,
    folder: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "store"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        result = function(rank, *arguments)
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        result = f"rank {rank}: {traceback.format_exc()}"
    torch.save(result, folder / f"{rank}.pt")


class StandingRanks:
    """Ranks of a Gloo group that wait for one function after the other: `with` ends them."""

    def __init__(self, world_size: int, folder: Path) -> None:
        torch.set_num_threads(1)  # as in run_ranks
        context = mp.get_context("fork")
        pipes = [context.Pipe() for _ in range(world_size)]
        self._pipes = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, world_size, folder, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call function(rank, *arguments) on every rank; the results in rank order."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        deadline = time.monotonic() + DEADLINE
        late = [
            rank
            for rank, pipe in enumerate(self._pipes)
            if not pipe.poll(max(0.0, deadline - time.monotonic()))
        ]
        assert not late, f"ranks {late} did not answer within {DEADLINE} s"
        results = [pipe.recv() for pipe in self._pipes]
        errors = [result for result in results if isinstance(result, str)]
        assert not errors, "\n".join(errors)
        return results

    def __enter__(self) -> "StandingRanks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, world_size: int, folder: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    while True:
        function, arguments = pipe.recv()
        try:
            result = function(rank, *arguments)
        except Exception:
            result = f"rank {rank}: {traceback.format_exc()}"
        pipe.send(result)
