"""The one timer: interleaved A/B in one process, medians with spread, ratios per round."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]

WARM_UP_ROUNDS = 3
MIN_ROUNDS, MAX_ROUNDS = 5, 200
SHORTEST_SAMPLE = 2e-3  # seconds; shorter calls are repeated within a sample
FLUSH_BYTES = 256 * 2**20  # larger than any L2 cache


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call."""

    wall_ms: float  # median over the rounds
    spread: float  # (third - first quartile) / median
    cpu_ms: float | None  # median process CPU time, all threads; None on a GPU
    rounds: int
    ratio: float  # median over the rounds of baseline / this one


def compare(
    calls: dict[str, Call], device: torch.device, baseline: str, seconds: float
) -> dict[str, Timing]:
    """Time the calls in turn, round after round, so that the machine's moods hit all alike.

    On a CPU: wall clock and the process's CPU time. On a GPU: CUDA events around one call, with the
    L2 cache flushed and the queue empty before it, so the host's launch time counts as it does for
    a user.
    """
    sample = _gpu_sampler(device) if device.type == "cuda" else _cpu_sampler(calls)
    for _ in range(WARM_UP_ROUNDS):
        for name, call in calls.items():
            sample(name, call)
    rounds: list[dict[str, tuple[float, float | None]]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < MIN_ROUNDS or (time.perf_counter() < end and len(rounds) < MAX_ROUNDS):
        names = list(calls) if len(rounds) % 2 == 0 else list(calls)[::-1]
        rounds.append({name: sample(name, calls[name]) for name in names})
    return {name: _summary(rounds, name, baseline) for name in calls}


def _cpu_sampler(calls: dict[str, Call]) -> Callable[[str, Call], tuple[float, float | None]]:
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(SHORTEST_SAMPLE / (time.perf_counter() - start)))

    def sample(name: str, call: Call) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats[name]):
            call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return 1e3 * wall / repeats[name], 1e3 * cpu / repeats[name]

    return sample


def _gpu_sampler(device: torch.device) -> Callable[[str, Call], tuple[float, float | None]]:
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(name: str, call: Call) -> tuple[float, None]:
        flush.zero_()
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end), None

    return sample


def _summary(
    rounds: list[dict[str, tuple[float, float | None]]], name: str, baseline: str
) -> Timing:
    walls = [taken[name][0] for taken in rounds]
    cpus = [cpu for taken in rounds if (cpu := taken[name][1]) is not None]
    low, median, high = statistics.quantiles(walls, n=4, method="inclusive")
    return Timing(
        wall_ms=median,
        spread=(high - low) / median,
        cpu_ms=statistics.median(cpus) if cpus else None,
        rounds=len(rounds),
        ratio=statistics.median(taken[baseline][0] / taken[name][0] for taken in rounds),
    )
