"""Where a result was measured: machine, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import swav_kernels as sk

PACKAGES = ("torch", "numpy", "triton")


def describe(device: torch.device) -> dict[str, object]:
    """Return what a reader needs to compare figures: no name or address of the machine."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        },
        "versions": {
            "python": platform.python_version(),
            "swav_kernels": sk.__version__,
            "cuda": torch.version.cuda,
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": _commit(),
    }


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
