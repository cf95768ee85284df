"""`python -m benchmarks.host`: what small calls cost beyond their kernels, and the import.

Calls of 32 samples and 60 prototypes on one thread, where checks, backend choice, autograd and
memory count as much as the numbers. A kernel is the compiled function, with memory and addresses
ready. The import is timed in fresh processes that have torch already.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import swav_kernels as sk
from benchmarks import machine, measure
from benchmarks.baselines import official
from benchmarks.case import EPSILON, ITERATIONS, TEMPERATURE
from swav_kernels import native

NUM_CROPS, NUM_SAMPLES, NUM_PROTOTYPES, DIM = 2, 32, 60, 64
IMPORT = (
    "import time, torch\nstart = time.perf_counter()\nimport swav_kernels\n"
    "print(1e3 * (time.perf_counter() - start))"
)
ROW = "{:<22}{:>12}{:>12}{:>12}{:>18}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each call, and one for the import; 2 without the compiled module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each call")
    parser.add_argument("--processes", type=int, default=9, help="that import the package")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if "cpu" not in sk.available_backends():
        print(f"benchmarks.host: backend 'cpu' cannot run here\n{sk.doctor()}")
        return 2
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    print(ROW.format("microseconds", "ours", "kernel", "host", "official eager"))
    for name, calls in cases().items():
        timings = measure.compare(calls, measure.cpu_sampler(calls), options.seconds)
        row = {contender: 1e3 * timing.wall_ms for contender, timing in timings.items()}
        row["host"] = row["ours"] - row["kernel"]
        figures[name] = row
        cells = (f"{row[x]:.1f}" for x in ("ours", "kernel", "host", "official"))
        print(ROW.format(name, *cells))
    figures["import"] = {"ms": import_ms(options.processes)}
    print(f"import swav_kernels, after torch: {figures['import']['ms']:.0f} ms")
    if options.json is not None:
        described = machine.describe([torch.device("cpu")])
        options.json.write_text(json.dumps({**described, "host": figures}, indent=1) + "\n")
    return 0


def cases() -> dict[str, dict[str, measure.Call]]:
    """The contenders of each small call; their results are compared first."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(NUM_CROPS, NUM_SAMPLES, DIM), dim=-1)
    prototypes = torch.nn.functional.normalize(torch.randn(NUM_PROTOTYPES, DIM), dim=-1)
    scores = features[0] @ prototypes.T
    out, f = torch.empty_like(scores), torch.empty(NUM_CROPS, NUM_PROTOTYPES)
    loss = torch.empty(())
    kernels = native.cpu_kernels(torch.float32)
    at = native.address
    sizes = NUM_CROPS, NUM_SAMPLES, NUM_PROTOTYPES, DIM

    def loss_kernels() -> object:
        kernels.swav_potentials(
            at(features), at(prototypes), 0, 0, at(f), *sizes, EPSILON, ITERATIONS, False, 1
        )
        kernels.swav_loss(
            at(features), at(prototypes), at(f), at(loss), 0, 0, [], *sizes,
            tuple(range(NUM_CROPS)), TEMPERATURE, EPSILON, False, False, 1,
        )  # fmt: skip
        return loss

    def sinkhorn_kernel() -> object:
        kernels.sinkhorn(
            *native.typed_address(scores), at(out), 1, *scores.shape, EPSILON, ITERATIONS, 1
        )
        return out

    found: dict[str, dict[str, measure.Call]] = {
        "sinkhorn": {
            "ours": lambda: sk.sinkhorn(scores),
            "kernel": sinkhorn_kernel,
            "official": lambda: official.sinkhorn(scores),
        },
        "swav_loss, forward": {
            "ours": lambda: sk.swav_loss(features, prototypes),
            "kernel": loss_kernels,
            "official": lambda: official.swav_loss(features, prototypes),
        },
    }
    for calls in found.values():
        for name in ("ours", "kernel"):
            torch.testing.assert_close(calls[name](), calls["official"](), rtol=1e-4, atol=1e-5)
    return found


def import_ms(processes: int) -> float:
    """Median milliseconds of `import swav_kernels`, once its bytecode lies ready."""
    command = [sys.executable, "-c", IMPORT]

    def once() -> float:
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return float(result.stdout)

    once()
    return statistics.median(once() for _ in range(processes))


if __name__ == "__main__":
    raise SystemExit(main())
