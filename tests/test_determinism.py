"""The same bits: in 50 runs, in fresh processes, with any number of threads, from many at once."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import GPU_BACKENDS
from depth import count
from every_op import LARGE, SMALL, calls, digests

import swav_kernels as sk
from swav_kernels import dispatch

TESTS = Path(__file__).parent
FRESH = """
import json, every_op
print(json.dumps([every_op.digests(every_op.calls(*x, every_op.LARGE)) for x in {where}]))
"""
FORK = """
import os, torch, every_op
for threads in (1, 4):
    torch.set_num_threads(threads)
    named = every_op.calls("cpu", "cpu", every_op.LARGE)
    wanted = every_op.digests(named)
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # as a loader's worker does
        os._exit(every_op.digests(named) != wanted)
    assert os.waitpid(child, 0)[1] == 0
"""
pytestmark = pytest.mark.heavy


def fresh(code: str, **environment: str) -> str:
    """What a new process prints."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_same_bits_in_50_runs(backend: str, device: str) -> None:
    named = calls(backend, device, SMALL)
    first = digests(named)
    for _ in range(49):
        assert digests(named) == first


def test_the_same_bits_in_fresh_processes() -> None:
    names = [x for x in sk.available_backends() if dispatch.why_not(x, "swav_loss") is None]
    where = [(name, "cuda" if name in GPU_BACKENDS else "cpu") for name in names]
    here = [digests(calls(*x, LARGE)) for x in where]
    for seed in range(count(1, 50)):
        there = fresh(FRESH.format(where=where), PYTHONHASHSEED=str(seed))
        assert json.loads(there) == here


@pytest.mark.usefixtures("threads")
def test_the_same_bits_with_any_number_of_threads(backend: str, device: str) -> None:
    if backend == "reference":
        return  # torch's own sums are not ours to promise
    named = calls(backend, device, LARGE)
    first = digests(named)
    for number in (2, 3, 5, 8, 16)[: count(2, 5)]:
        torch.set_num_threads(number)
        assert digests(named) == first


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads_a_call", [1, 2])
def test_the_same_bits_from_8_threads_at_once(
    backend: str, device: str, threads_a_call: int
) -> None:
    if backend == "reference" and threads_a_call > 1:
        return
    torch.set_num_threads(threads_a_call)
    named = calls(backend, device, SMALL)
    wanted = {name: call() for name, call in named.items()}
    different: list[str] = []

    def work(first: int) -> None:
        names = list(named)
        for i in range(count(50, 200)):
            name = names[(first + i) % len(names)]
            if not all(map(torch.equal, named[name](), wanted[name])):
                different.append(name)

    threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_a_forked_worker_with_one_thread_gives_the_same_bits() -> None:
    fresh(FORK)
