"""`machine.json`: what a run was trained on."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import swav_kernels as sk
from swav_trainer import durable, ranks

FILE = "machine.json"


def describe(device: torch.device) -> dict[str, str | int]:
    """Processor, GPU, threads and versions of this process."""
    facts: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    facts |= {
        "processes": ranks.count(),
        "torch": torch.__version__,
        "swav_kernels": sk.__version__,
    }
    return facts


def write(folder: Path, device: torch.device) -> None:
    """Write it into the folder of a run; a resumed run tells of its last machine."""
    text = json.dumps(describe(device), indent=1) + "\n"
    durable.write_text(folder / FILE, text)


def read(folder: Path) -> dict[str, Any]:
    """Return what is known of a run's machine."""
    try:
        facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()
