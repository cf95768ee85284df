"""The same cases under pytest-benchmark: `pytest benchmarks`."""

import pytest
import torch

import swav_kernels as sk
from benchmarks.cases import SHAPES, Case, cases
from benchmarks.run import why_cannot_time, worst_error

CPU = torch.device("cpu")
BACKENDS = [
    name for name in sk.available_backends() if why_cannot_time("sinkhorn", name, CPU) is None
]


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    return next(cases([request.param], quick=True))


@pytest.mark.parametrize("backend", [*BACKENDS, "official"])
def test_speed(benchmark, case: Case, backend: str) -> None:
    def call() -> tuple[torch.Tensor, ...]:
        if backend == "official":
            return case.official(*case.inputs)
        return case.run(*case.inputs, backend=backend)

    expected = case.official(
        *(x.detach().double().requires_grad_(x.requires_grad) for x in case.inputs)
    )
    if backend != "official":
        assert worst_error(case, call(), expected) <= 1
    benchmark.group = f"{case.op} {case.shape}"
    benchmark(call)
