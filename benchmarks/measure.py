"""The one timer: interleaved A/B in one process, medians with spread, ratios per round."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

WARM_UP_ROUNDS = 3
MIN_ROUNDS, MAX_ROUNDS = 5, 200
SHORTEST_SAMPLE = 2e-3  # seconds; shorter calls are repeated within a sample
FLUSH_BYTES = 256 * 2**20  # larger than any L2 cache

Call = Callable[[], object]
Sample = tuple[float, float | None]  # milliseconds a call: wall, process CPU (None on a GPU)
Sampler = Callable[[str], Sample]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call."""

    wall_ms: float  # median over the rounds
    spread: float  # (third - first quartile) / median
    cpu_ms: float | None  # median process CPU time, all threads; None on a GPU
    rounds: int
    # to each contender: median over the rounds of its time / this one's
    ratios: dict[str, float]  # of wall clock
    cpu_ratios: dict[str, float]  # of process CPU time; empty on a GPU


def compare(
    names: Iterable[str], sample: Sampler, seconds: float, against: Iterable[str] = ()
) -> dict[str, Timing]:
    """Time the contenders in turn, round after round, so that the machine's moods hit all alike.

    Args:
        names: of the contenders.
        sample: times one of them once.
        seconds: how long to go on; at least MIN_ROUNDS rounds are made.
        against: the contenders that ratios are wanted to.
    """
    names, against = list(names), list(against)
    end = time.perf_counter() + seconds
    for _ in range(WARM_UP_ROUNDS):
        for name in names:
            sample(name)
        if time.perf_counter() > end:  # long calls are warm after one
            break
    rounds: list[dict[str, Sample]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < MIN_ROUNDS or (time.perf_counter() < end and len(rounds) < MAX_ROUNDS):
        order = names if len(rounds) % 2 == 0 else names[::-1]
        rounds.append({name: sample(name) for name in order})
    return {name: summary(rounds, name, against) for name in names}


def summary(rounds: list[dict[str, Sample]], name: str, against: list[str]) -> Timing:
    """Return one contender's statistics over the rounds."""

    def times(contender: str, clock: int) -> list[float]:
        return [time for taken in rounds if (time := taken[contender][clock]) is not None]

    def ratios(clock: int) -> dict[str, float]:
        own = times(name, clock)
        return {
            other: statistics.median(x / y for x, y in zip(times(other, clock), own, strict=True))
            for other in (against if own else ())
        }

    wall, cpu = 0, 1
    low, median, high = statistics.quantiles(times(name, wall), n=4, method="inclusive")
    return Timing(
        wall_ms=median,
        spread=(high - low) / median,
        cpu_ms=statistics.median(times(name, cpu)) if times(name, cpu) else None,
        rounds=len(rounds),
        ratios=ratios(wall),
        cpu_ratios=ratios(cpu),
    )


def cpu_sampler(calls: Mapping[str, Call]) -> Sampler:
    """Wall clock and process CPU time of as many calls as make a sample long enough."""
    repeats: dict[str, int] = {}

    def sample(name: str) -> Sample:
        call = calls[name]
        if name not in repeats:
            call()
            repeats[name] = 1
            repeats[name] = max(1, round(1e3 * SHORTEST_SAMPLE / sample(name)[0]))
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats[name]):
            call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return 1e3 * wall / repeats[name], 1e3 * cpu / repeats[name]

    return sample


def gpu_sampler(
    calls: Mapping[str, list[Call]], device: torch.device, launch_counts: bool
) -> Sampler:
    """CUDA events around one call, the L2 cache flushed before it.

    Args:
        calls: of each contender one call a copy of the inputs; they are taken in turn.
        device: the GPU.
        launch_counts: let the queue run empty before the call, so that the host's launch time
            counts as it does for a user; else the flush hides it, and the GPU's time is left.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    turns = dict.fromkeys(calls, 0)

    def sample(name: str) -> Sample:
        copies = calls[name]
        call = copies[turns[name] % len(copies)]
        turns[name] += 1
        torch.cuda.synchronize(device)
        flush.zero_()
        if launch_counts:
            torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end), None

    return sample


def capture(call: Call, device: torch.device) -> Call:
    """Return the replay of a CUDA graph of the call."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_ROUNDS):  # what allocates or tunes at the first call has done so
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> object:
        graph.replay()
        return outputs

    return replay
