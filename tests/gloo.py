"""Processes of a Gloo group, each of which runs a function of the test."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEADLINE = 60  # seconds for all ranks together


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
