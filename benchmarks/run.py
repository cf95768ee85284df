"""The command: check each case, time it, print one table, write one JSON file."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import swav_kernels as sk
from benchmarks import machine, measure
from benchmarks.cases import SHAPES, Case, cases
from swav_kernels.dispatch import BACKENDS, why_not

BASELINE = "official"
HEADER = (
    f"{'op':<22}{'shape':<14}{'backend':<11}{'ms':>10}{'spread':>8}{'cpu ms':>10}{'GB/s':>8}"
    f"{'GFLOP/s':>9}{'x official':>12}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 0 if every case that ran was correct."""
    options = _parser().parse_args(arguments)
    # a checkout without the compiled module would quietly measure something else
    if (reason := why_not("cpu")) is not None:
        print(
            f"benchmarks: no compiled module in {Path(sk.__file__).parent}: {reason}\n"
            "Install the checkout with: pip install -e ."
        )
        return 2
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks: --device cuda was asked for, but torch sees no CUDA device")
        return 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result = {**machine.describe(device), "device": device.type, "results": []}
    print(json.dumps({**result["machine"], **result["versions"], "commit": result["commit"]}))
    print(f"seconds a case: {options.seconds}; x official: median of {BASELINE} / this, per round")
    print(HEADER, flush=True)
    wrong = 0
    for case in cases(options.op, options.quick):
        backends = options.backend or [
            name for name in BACKENDS if why_cannot_time(case.op, name, device) is None
        ]
        rows = run_case(case, device, backends, options.seconds)
        result["results"] += rows
        wrong += sum(row.get("correct") is False for row in rows)
        if options.json is not None:  # after every case: an interrupted run keeps what it has
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, help="default: all that can run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the first shape of each op")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing budget of a case")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser


def run_case(
    case: Case, device: torch.device, backends: Sequence[str], seconds: float
) -> list[dict[str, object]]:
    """Check every backend against the baseline in float64, time the correct ones, print rows."""
    inputs = tuple(_moved(tensor, device) for tensor in case.inputs)
    expected = case.official(*(_moved(tensor, device, torch.float64) for tensor in case.inputs))
    rows: list[dict[str, object]] = []
    calls: dict[str, measure.Call] = {BASELINE: lambda: case.official(*inputs)}
    for backend in backends:
        row: dict[str, object] = {"op": case.op, "shape": case.shape, "backend": backend}
        if (reason := why_cannot_time(case.op, backend, device)) is not None:
            print(f"{case.op:<22}{case.shape:<14}{backend:<11}not run: {reason}")
            rows.append({**row, "not_run": reason})
            continue
        outputs = case.run(*inputs, backend=backend)
        share = worst_error(case, outputs, expected)
        row |= {"correct": share <= 1, "error_over_bound": share}
        rows.append(row)
        if share <= 1:
            calls[backend] = lambda backend=backend: case.run(*inputs, backend=backend)
        else:
            print(
                f"{case.op:<22}{case.shape:<14}{backend:<11}WRONG: {share:.3g} times the error "
                "bound, so it is not timed"
            )
    timings = measure.compare(calls, device, BASELINE, seconds)
    rows.insert(0, {"op": case.op, "shape": case.shape, "backend": BASELINE})
    for row in rows:
        if (timing := timings.get(str(row["backend"]))) is not None:
            row |= dataclasses.asdict(timing)
            row |= {"bytes": case.num_bytes, "flops": case.flops}
            print(_line(case, str(row["backend"]), timing), flush=True)
    return rows


def why_cannot_time(op: str, backend: str, device: torch.device) -> str | None:
    """Return why a backend's time would be missing or mean nothing here, or None."""
    if backend == "triton" and device.type == "cpu":
        return "it needs a GPU: interpreted kernels tell nothing about speed"
    return why_not(backend, op, device, torch.float32)


def worst_error(case: Case, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest error over its bound among the outputs; NaN counts as infinite."""
    shares = [
        (got.double() - want).abs().max().nan_to_num(nan=torch.inf).item() / bound(want)
        for got, want, bound in zip(outputs, expected, case.bounds, strict=True)
    ]
    return max(shares)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.detach().to(device, dtype).requires_grad_(tensor.requires_grad)


def _line(case: Case, backend: str, timing: measure.Timing) -> str:
    seconds = timing.wall_ms / 1e3
    cpu = "-" if timing.cpu_ms is None else f"{timing.cpu_ms:.3f}"
    # the counts are of the least work, so for the baseline they are an effective rate
    return (
        f"{case.op:<22}{case.shape:<14}{backend:<11}{timing.wall_ms:>10.3f}{timing.spread:>8.1%}"
        f"{cpu:>10}{case.num_bytes / seconds / 1e9:>8.2f}{case.flops / seconds / 1e9:>9.1f}"
        f"{timing.ratio:>12.2f}"
    )
