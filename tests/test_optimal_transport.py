"""The Sinkhorn at convergence is the plan that POT finds, by code that shares nothing with ours."""

import numpy as np
import ot
import pytest
import torch
from compare import generator, largest, sinkhorn_bound, unit_rows
from torch import Tensor

import swav_kernels as sk

pytestmark = [pytest.mark.op("sinkhorn"), pytest.mark.heavy]

ITERATIONS = 1000
SHAPES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (5, 64),
    (64, 5),
    (33, 37),
    (37, 33),
    (64, 64),
    (130, 31),
    (63, 300),
]
# (N, K), epsilon, whether samples and prototypes have weights: 20 problems, all converged by then
PROBLEMS = [
    (shape, (0.05, 0.1, 0.5)[(i + weighted) % 3], bool(weighted))
    for i, shape in enumerate(SHAPES)
    for weighted in (0, 1)
]


def marginal(size: int, weighted: bool, seed: int) -> Tensor:
    """A distribution, in float64."""
    shares = torch.rand(size, generator=generator(seed), dtype=torch.float64) + 0.1
    return shares / shares.sum() if weighted else torch.full_like(shares, 1 / size)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.float64)]
)
@pytest.mark.parametrize(("shape", "epsilon", "weighted"), PROBLEMS)
def test_codes_are_the_optimal_plan(
    backend: str, device: str, dtype: torch.dtype, shape: tuple[int, int], epsilon: float,
    weighted: bool,
) -> None:  # fmt: skip
    n, k = shape
    scores = (unit_rows(n, 16, seed=n) @ unit_rows(k, 16, seed=k + 1).T).to(dtype)
    samples, prototypes = marginal(n, weighted, 1), marginal(k, weighted, 2)
    plan, log = ot.sinkhorn(
        samples.numpy(), prototypes.numpy(), -scores.double().numpy(), epsilon,
        method="sinkhorn_log", numItermax=100_000, stopThr=1e-13, log=True, warn=False,
    )  # fmt: skip
    assert log["err"][-1] < 1e-12  # it has converged
    weights = {"sample_weights": samples, "prototype_weights": prototypes} if weighted else {}
    codes = sk.sinkhorn(
        scores.to(device), ITERATIONS, epsilon, backend=backend,
        **{name: w.to(device, dtype) for name, w in weights.items()},
    )  # fmt: skip
    wanted = torch.from_numpy(plan) / samples.unsqueeze(1)  # a row of codes sums to 1
    bound = sinkhorn_bound(scores, epsilon) if dtype == torch.float32 else 1e-10
    assert largest(codes.double().cpu() - wanted) <= bound
    assert np.allclose(plan.sum(0), prototypes)
