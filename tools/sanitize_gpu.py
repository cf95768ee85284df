"""The GPU kernels under compute-sanitizer: memory, races, uninitialised reads and barriers.

    python tools/sanitize_gpu.py [TOOL ...]    # memcheck racecheck initcheck synccheck

Each tool must report the fault that tests/sanitizers/planted.cu plants for it, and nothing in the
cases of tests/sanitizer_shapes.py. Where the machine has no compute-sanitizer, or refuses it, that
is said with the reason, and is no failure. Needs nvcc, a GPU and the package built with CUDA.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# what a tool says of its planted fault
TOOLS = {
    "memcheck": "Invalid __global__ write",
    "racecheck": "ace reported between",
    "initcheck": "Uninitialized __global__ memory read",
    "synccheck": "Barrier error detected",
}
FOUND = 77  # exit status for a report, unlike any of Python's
LEAST_CASES = 60
# what the sanitizer says where it may not, or cannot, watch this GPU
REFUSALS = ("not supported", "unable to", "permission", "ptrace", "no attachable", "injection")


def find(name: str) -> str | None:
    """A program of the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [str(Path(home, "bin")) for home in homes if home]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))


def run(command: list[str], limit: float = 1500) -> tuple[int, str]:
    """Exit status and everything that was printed; memory of each tensor is its own."""
    environment = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # or a step too far lands in another tensor
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }
    try:
        done = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, timeout=limit, cwd=ROOT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, f"no end after {limit:.0f} s"
    return done.returncode, done.stdout


def look(tool: str, sanitizer: str, planted: Path) -> str | None:
    """Run one tool; returns why it was skipped, or None. Exits where something is wrong."""
    watched = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)]
    status, text = run([*watched, str(planted), tool], 120)
    if status != FOUND or TOOLS[tool] not in text:
        refusal = next(
            (x for x in text.splitlines() if any(y in x.lower() for y in REFUSALS)), None
        )
        if refusal is not None:
            return refusal.strip("= ")
        sys.exit(f"tools/sanitize_gpu.py: {tool} must report its planted fault, but says:\n{text}")
    status, text = run([*watched, sys.executable, "tests/sanitizer_shapes.py", "cuda"])
    count = re.search(r"^(\d+) cases$", text, re.MULTILINE)
    if status != 0 or count is None or int(count[1]) < LEAST_CASES:
        sys.exit(f"tools/sanitize_gpu.py: {tool}: exit status {status}:\n{text[-6000:]}")
    print(f"{tool}: the planted fault reported, nothing in {count[1]} cases", end="", flush=True)
    return None


def main() -> None:
    """Run the tools that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tools", nargs="*", help=f"of {', '.join(TOOLS)}; all if none")
    chosen = parser.parse_args().tools or list(TOOLS)
    if not TOOLS.keys() >= set(chosen):
        parser.error(f"no such tool: {chosen}")
    nvcc, sanitizer = find("nvcc"), find("compute-sanitizer")
    if nvcc is None or sanitizer is None:
        missing = "nvcc" if nvcc is None else "compute-sanitizer"
        print(f"skipped: this machine has no {missing}: {', '.join(chosen)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder, "planted")
        command = [nvcc, "-std=c++17", "-lineinfo", "-o", planted]
        subprocess.run([*command, ROOT / "tests/sanitizers/planted.cu"], check=True)
        for tool in chosen:
            started = time.monotonic()
            reason = look(tool, sanitizer, planted)
            if reason is not None:
                print(f"{tool}: skipped, the machine refuses it: {reason}", end="")
            print(f" ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
