"""`python -m benchmarks.accuracy`: how far every op is from float64, and the formulas beside it.

Ours on each backend, the official formulas in eager torch and the same under torch.compile, all
on the same inputs of a dtype; what is right is the official formula in float64.
"""

import argparse
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import swav_kernels as sk
from benchmarks import cases, machine, readme
from benchmarks.baselines import official
from benchmarks.case import EPSILON, ITERATIONS, TEMPERATURE, Inputs, Outputs, Shape
from swav_kernels.dispatch import BACKENDS, why_not

SIZES = {
    "prototype_scores": ((64, 300), (256, 3000)),
    "sinkhorn": ((64, 300), (256, 3000)),
    "swapped_cross_entropy": ((4, 64, 300), (4, 64, 3000)),
    "swav_loss": ((4, 64, 300), (4, 64, 3000)),
}
EPSILONS = {"sinkhorn": (0.5, 0.05, 0.01, 0.002), "swav_loss": (0.05, 0.01)}
OUTPUTS = {
    "prototype_scores": ("scores",),
    "sinkhorn": ("codes",),
    "swapped_cross_entropy": ("loss", "d_scores"),
    "swav_loss": ("loss", "d_features", "d_prototypes"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ABOUT = """\
Largest error against float64, from the same inputs: of a gradient in shares of the largest one,
else as it is. L2-normalised Gaussian features and prototypes, D = 128; temperature 0.1, 3
iterations. `reference` and `official` are plain torch, `compile` is `official` under
torch.compile. Ours sums in float32 and returns codes and losses in it; official in half does all
in half. NaN: the result holds one."""

OFFICIAL: dict[str, Callable[..., Tensor]] = {
    "prototype_scores": lambda features, prototypes: features @ prototypes.t(),
    "sinkhorn": official.sinkhorn,
    "swapped_cross_entropy": official.swapped_cross_entropy,
    "swav_loss": official.swav_loss,
}
CONTENDERS = ("cpu", "triton", "cuda", "reference", "official", "compile")  # columns, if they ran
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 2 if the device is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--op", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, and no torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page to this file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.accuracy: --device cuda was asked for, but torch sees no CUDA device")
        return 2
    rows = [row for op in options.op for row in measure(op, device, options.quick)]
    result = {**machine.describe([device]), "results": rows}
    text = page(result)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(text + "\n")
    return 0


def measure(op: str, device: torch.device, quick: bool) -> Iterator[Row]:
    """Yield a row for each size, epsilon, dtype and output of an op."""
    sizes = SIZES[op][:1] if quick else SIZES[op]
    for size, epsilon, dtype in itertools.product(sizes, EPSILONS.get(op, (EPSILON,)), DTYPES):
        shape = Shape(size, "accuracy")
        inputs = {name: x.to(dtype) for name, x in cases.make(op, shape, device).inputs.items()}
        exact = {name: x.double() for name, x in inputs.items()}
        wanted = _call(op, OFFICIAL[op], exact, epsilon)
        found = {
            name: _call(op, functools.partial(getattr(sk, op), backend=name), inputs, epsilon)
            for name in BACKENDS
            if why_not(name, op, device, dtype) is None
        }
        found["official"] = _call(op, OFFICIAL[op], inputs, epsilon)
        # not of one product alone, and at the larger size only: compiling is what takes long
        if size == SIZES[op][-1] and not quick and op != "prototype_scores":
            torch._dynamo.reset()  # each case by itself, or torch would generalise after a few
            compiled = torch.compile(OFFICIAL[op], dynamic=False)
            found["compile"] = _call(op, compiled, inputs, epsilon)
        for i, output in enumerate(OUTPUTS[op]):
            unit = wanted[i].abs().max().item() if output.startswith("d_") else 1.0
            row = {"op": op, "shape": shape.name, "output": output, "dtype": str(dtype)[6:]}
            row["epsilon"] = epsilon if op in EPSILONS else None
            row["errors"] = {
                name: _error(outputs[i], wanted[i], unit) for name, outputs in found.items()
            }
            if output == "codes":
                row["bound"] = 2e-6 + 2.0**-22 * exact["scores"].abs().max().item() / epsilon
            yield row


def _call(op: str, function: Callable[..., Tensor], x: Inputs, epsilon: float) -> Outputs:
    if op == "prototype_scores":
        return (function(x["features"], x["prototypes"]),)
    if op == "sinkhorn":
        return (function(x["scores"], ITERATIONS, epsilon),)
    if op == "swapped_cross_entropy":
        loss = functools.partial(function, codes=x["codes"], temperature=TEMPERATURE)
        return official.with_gradients(loss, (x["scores"],), True)()
    loss = functools.partial(
        function, temperature=TEMPERATURE, epsilon=epsilon, iterations=ITERATIONS
    )
    return official.with_gradients(loss, (x["features"], x["prototypes"]), True)()


def _error(got: Tensor, wanted: Tensor, unit: float) -> float | None:
    """The largest error in that unit; None if there is a NaN, which JSON does not have."""
    error = (got.double() - wanted).abs().max().item() / unit
    return None if math.isnan(error) else error


def page(result: dict[str, Any]) -> str:
    """Markdown: where it was measured, and a table for each op."""
    rows: list[Row] = result["results"]
    names = [name for name in CONTENDERS if any(name in row["errors"] for row in rows)]
    parts = ["# Accuracy", "", readme.about(result), "", ABOUT]
    for op in dict.fromkeys(row["op"] for row in rows):
        columns = ("size", "dtype", "epsilon", "output", "promised", *names)
        parts += ["", f"## {op}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in rows:
            if row["op"] == op:
                numbers = (row.get("bound", "-"), *(row["errors"].get(name, "-") for name in names))
                epsilon = "-" if row["epsilon"] is None else f"{row['epsilon']:g}"
                cells = (row["shape"], row["dtype"], epsilon, row["output"], *map(_text, numbers))
                parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts)


def _text(number: float | str | None) -> str:
    if number is None:
        return "NaN"
    return number if isinstance(number, str) else f"{number:.1e}"


if __name__ == "__main__":
    raise SystemExit(main())
