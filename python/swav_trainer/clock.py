"""Where the time of a run goes, and the memory."""

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

MIB = 2**20


class Clock:
    """Shares of the time in the parts of a step; on a GPU by its own clock.

    Args:
        device: where the parts run.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._waited = 0.0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as that part."""
        if self._on_gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._marks.append((name, first, last))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def shares(self, waited: float) -> dict[str, float]:
        """Return `<part>_share` of the time since it was asked last, for data too.

        Args:
            waited: seconds in which there were no crops, in all.
        """
        for name, first, last in self._marks:
            last.synchronize()
            self._seconds[name] += first.elapsed_time(last) / 1000
        now = time.perf_counter()
        self._seconds["data"] = waited - self._waited
        span = max(now - self._since, 1e-9)
        shares = {f"{name}_share": min(x / span, 1.0) for name, x in self._seconds.items()}
        self._marks.clear()
        self._seconds.clear()
        self._waited, self._since = waited, now
        return shares


def peak_memory(device: torch.device) -> float:
    """MiB that were in use at most: the process's on a CPU, the allocator's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)
