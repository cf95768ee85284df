"""The command: check each case, time it, print one table, write one JSON file and one page."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import swav_kernels as sk
from benchmarks import cases, machine, one_case, table
from benchmarks.baselines import BASELINES, OFFICIAL
from benchmarks.limits import Limits
from swav_kernels.dispatch import BACKENDS, why_not

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 0 if all of ours that ran was correct."""
    options = _parser().parse_args(arguments)
    # a checkout without the compiled module would quietly measure something else
    if (reason := why_not("cpu")) is not None:
        print(
            f"benchmarks: no compiled module in {Path(sk.__file__).parent}: {reason}\n"
            "Install the checkout with: pip install -e ."
        )
        return 2
    devices = _devices(options.device)
    if not devices:
        print("benchmarks: no device is left to measure on")
        return 2
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result = machine.describe(devices)
    print(json.dumps({**result["machine"], **result["versions"], "commit": result["commit"]}))
    print(table.LEGEND, flush=True)
    status = _run_all(options, devices, result)
    if options.markdown is not None:
        from benchmarks import page  # matplotlib

        print(f"written: {page.write(result, options.markdown)}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=cases.SHAPES, default=list(cases.SHAPES))
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, help="default: all that can run")
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"), default=["cpu"])
    parser.add_argument(
        "--shapes", nargs="+", choices=cases.GROUPS, default=list(cases.GROUPS),
        help="groups of shapes (default: all); small ones show what the host costs",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", nargs="*", choices=BASELINES, metavar="NAME",
        help=f"of {', '.join(BASELINES)} (default: all that are installed)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one shape an op, one baseline")
    parser.add_argument("--sweep", action="store_true", help="prototypes from 1,024 to 262,144")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing budget of a case")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    parser.add_argument("--no-memory", action="store_true", help="measure no peak memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument(
        "--markdown", type=Path, metavar="DIR", help="write a page with plots there"
    )
    return parser


def _devices(names: Sequence[str]) -> list[torch.device]:
    if "cuda" in names and not torch.cuda.is_available():
        print("benchmarks: --device cuda was asked for, but torch sees no CUDA device")
        names = [name for name in names if name != "cuda"]
    return [torch.device(name) for name in names]


def _run_all(
    options: argparse.Namespace, devices: list[torch.device], result: dict[str, Any]
) -> int:
    """Fill `result`, printing and writing after every case; return the exit status."""
    rows: list[one_case.Row] = []
    limits = {device: Limits(device) for device in devices}
    result |= {"seconds": options.seconds, "limits": {}, "results": rows}
    result["interrupted"] = True  # until the end is reached, whatever may come
    groups = ["sweep"] if options.sweep else options.shapes
    try:
        for device in devices:
            setting = one_case.Setting(
                device, options.backend or [], _baselines(options, device), options.seconds,
                not (options.no_memory or options.quick),
            )  # fmt: skip
            for op, shape in cases.select(options.op, groups, options.quick):
                if shape.gpu_only and device.type == "cpu":
                    continue
                added = one_case.run(op, shape, setting, limits[device])
                rows += added
                print("\n".join([table.heading(added[0]), *map(table.line, added)]), flush=True)
                result["limits"][device.type] = limits[device].as_json()
                _write(options.json, result)  # an interrupted run keeps what it has
    except KeyboardInterrupt:
        _write(options.json, result)
        where = "" if options.json is None else f" in {options.json}"
        print(f"\ninterrupted: {len(rows)} results are kept{where}")
        return INTERRUPTED
    result["interrupted"] = False
    _write(options.json, result)
    return 1 if any(row["is_ours"] and row.get("correct") is False for row in rows) else 0


def _baselines(options: argparse.Namespace, device: torch.device) -> list[str]:
    """Return the baselines that can run; say of the others why they cannot."""
    if options.quick and options.baselines is None:
        return [OFFICIAL]
    chosen = []
    for name in BASELINES if options.baselines is None else options.baselines:
        reason = BASELINES[name].why_not(device)
        if reason is None:
            chosen.append(name)
        else:
            print(f"baseline {name} is left out: {reason}")
    return chosen


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
