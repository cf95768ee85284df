"""What the sanitizers are given: planted faults that are there, cases that run.

The sanitizers themselves run in CI, by tools/sanitize.py, and on a GPU by tools/sanitize_gpu.py.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sanitizer_shapes import CALLS, cases

from swav_kernels import native

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import sanitize  # noqa: E402
import sanitize_gpu  # noqa: E402

PLANTED = ROOT / "tests/sanitizers"


def test_every_planted_fault_is_looked_for() -> None:
    text = (PLANTED / "planted.cpp").read_text()
    in_module = re.findall(r"^PLANTED (\w+)\(", text, re.MULTILINE)
    assert set(in_module) == sanitize.PLANTED.keys()
    text = (PLANTED / "planted.cu").read_text()
    on_gpu = re.findall(r'strcmp\(tool, "(\w+)"\) == 0\)$', text, re.MULTILINE)
    assert set(on_gpu) == sanitize_gpu.TOOLS.keys()


def test_the_module_of_users_has_no_planted_fault() -> None:
    assert b"planted_" not in Path(native.load().__file__).read_bytes()


def test_the_planted_faults_of_the_gpu_compile(tmp_path: Path) -> None:
    nvcc = sanitize_gpu.find("nvcc")
    if nvcc is None:
        return
    command = [nvcc, "-std=c++17", "-Werror=all-warnings", "-o", tmp_path / "planted"]
    subprocess.run([*command, PLANTED / "planted.cu"], check=True)


def test_without_the_gpu_sanitizer_the_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text("#!/bin/sh\n")
    (tmp_path / "nvcc").chmod(0o755)
    command = [sys.executable, ROOT / "tools/sanitize_gpu.py", "memcheck"]
    environment = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout == "skipped: this machine has no compute-sanitizer: memcheck\n"


@pytest.mark.heavy
def test_the_cases_of_the_gpu_sanitizer_run(backend: str, device: str) -> None:
    called = 0
    for name, call in cases(backend, device):
        results = call()
        for x in results if isinstance(results, tuple) else (results,):
            assert isinstance(x, torch.Tensor), name
            assert x.isfinite().all(), name
        called += 1
    assert called == CALLS >= sanitize_gpu.LEAST_CASES
