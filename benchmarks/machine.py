"""Where a result was measured: machine, versions, commit, allocator; and what memory is free."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

import swav_kernels as sk

PACKAGES = ("torch", "numpy", "triton", "lightly", "POT", "flash-sinkhorn")
# freed memory stays mapped, so page faults do not hide what the kernels do
WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def describe(devices: Sequence[torch.device]) -> dict[str, object]:
    """Return what a reader needs to compare figures: no name or address of the machine."""
    has_gpu = any(device.type == "cuda" for device in devices)
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if has_gpu else None,
            "allocator": allocator(),
        },
        "versions": {
            "python": platform.python_version(),
            "swav_kernels": sk.__version__,
            "cuda": torch.version.cuda,
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def allocator() -> str:
    """Name the allocator's setting: W (warm) keeps freed memory, D is the C library's default."""
    malloc = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    if malloc == WARM:
        return "W"
    return " ".join(f"{k}={v}" for k, v in sorted(malloc.items())) or "D"


def available_bytes(device: torch.device) -> int:
    """Memory that new tensors may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if not info.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    available = 1024 * int(lines["MemAvailable"].split()[0])
    limits = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).exists()]
    return min([available, *(int(limit) for limit in limits if limit.isdigit())])


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
