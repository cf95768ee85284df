"""Peak memory above the inputs: on a CPU in a fresh process, on a GPU by torch's allocator."""

import ctypes
import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import cases, contenders
from benchmarks.case import Call, Contender, Shape

# no memory that was freed may serve again unseen: everything above 64 KiB is mapped for itself
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT = 600  # seconds


def gpu_peak(call: Call, device: torch.device) -> int:
    """Bytes that the call, already warm, allocates beyond what was there: outputs and scratch."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cpu_peak(op: str, shape: Shape, contender: Contender) -> int | None:
    """Bytes in a fresh process; None if that failed."""
    what = {
        "op": op,
        "shape": dataclasses.asdict(shape),
        "name": contender.name,
        "variant": contender.variant,
        "threads": torch.get_num_threads(),
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(what)],
            cwd=Path(__file__).parents[1], env=kept | MALLOC, check=True, capture_output=True,
            text=True, timeout=TIMEOUT,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return int(result.stdout.split()[-1])


def peak_of(call: Call) -> int:
    """Bytes of resident memory that a call takes at its peak beyond what this process has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    before = peak()
    outputs = call()
    taken = peak() - before
    del outputs
    return taken


def reset_peak() -> None:
    """Set the peak to what is resident now, where the system can (elsewhere it may hide some)."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def peak() -> int:
    """Largest resident memory so far, in bytes."""
    if STATUS.exists():  # ru_maxrss would begin with the parent's
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _measure(op: str, shape: Shape, name: str, variant: str) -> int:
    device = torch.device("cpu")
    case = cases.make(op, shape, device)
    call = contenders.ready(contenders.find(case, name, variant), case.inputs)
    if name == "compile":
        call()  # what the compiler takes is not the op's
    else:
        tiny = cases.make(op, shape.tiny(), device)
        contenders.ready(contenders.find(tiny, name, variant), tiny.inputs)()
    return peak_of(call)


def main() -> None:
    """Print the bytes of the contender that the argument describes."""
    what = json.loads(sys.argv[1])
    torch.set_num_threads(what["threads"])
    shape = Shape(**{**what["shape"], "sizes": tuple(what["shape"]["sizes"])})
    print(_measure(what["op"], shape, what["name"], what["variant"]))


if __name__ == "__main__":
    main()
