"""The same cases under pytest-benchmark: `pytest benchmarks/test_benchmarks.py -k 256x3000`.

Without the interleaving of `python -m benchmarks`: for one's own changes, not for ratios.
"""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import cases, contenders
from benchmarks.case import Case, Outputs, Shape

BASELINES = ("official", "plain")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _entries() -> Iterator[Any]:
    for device in DEVICES:
        for op, shape in cases.select(list(cases.SHAPES), ("small", "paper"), quick=False):
            like = cases.make(op, shape.tiny(), torch.device(device))  # has the same contenders
            backends = contenders.default_backends(op, torch.device(device))
            for contender in (
                *contenders.theirs(like, BASELINES), *contenders.ours(like, backends)
            ):  # fmt: skip
                name = f"{op} {shape.name} {contender.name} {contender.variant} {device}"
                yield pytest.param(
                    device, op, shape, contender.name, contender.variant, id=name.replace(" ", "-")
                )


@functools.lru_cache(maxsize=1)
def _case(op: str, shape: Shape, device: str) -> Case:
    return cases.make(op, shape, torch.device(device))


@pytest.mark.parametrize(("device", "op", "shape", "name", "variant"), _entries())
def test_speed(benchmark: Any, device: str, op: str, shape: Shape, name: str, variant: str) -> None:
    """Time one contender after its outputs were right."""
    case = _case(op, shape, device)
    contender = contenders.find(case, name, variant)
    call = contenders.ready(contender, case.inputs)
    inputs = {key: x.to(contender.dtype) for key, x in case.inputs.items()}
    assert case.oracle(inputs).share(call(), contender.bounds) <= 1

    def run() -> Outputs:
        outputs = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return outputs

    benchmark.group = f"{op} {shape.name}"
    benchmark(run)
