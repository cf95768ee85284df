"""Sinkhorn codes and potentials against the float64 log-domain oracle."""

import functools

import pytest
import torch
from compare import HALF_DTYPES, SCORE_KINDS, assert_codes, make_scores, sinkhorn
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.op("sinkhorn")

EPSILONS = (0.005, 0.03, 0.05, 0.5)
# 1 and 2: degenerate; 63, 64: around a tile; 513: several tiles and one row; 3001: no vector
# width divides it
NUM_SAMPLES = (1, 2, 63, 64, 513)
NUM_PROTOTYPES = (1, 3, 300, 3000, 3001)
SHAPES = [(n, k) for n in NUM_SAMPLES for k in NUM_PROTOTYPES]
SMALL_SHAPES = [shape for shape in SHAPES if shape[0] * shape[1] <= 64 * 300]
LARGE_SHAPES = [shape for shape in SHAPES if shape not in SMALL_SHAPES]
INTERPRETER_SHAPES = [(1, 3), (2, 300), (63, 1), (64, 300)]
# each kind meets every large shape and, over the shapes, every epsilon
LARGE_CASES = [
    (n, k, kind, EPSILONS[(i + j) % len(EPSILONS)])
    for i, (n, k) in enumerate(LARGE_SHAPES)
    for j, kind in enumerate(SCORE_KINDS)
]


@functools.cache
def small_case(kind: str, n: int, k: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Scores and codes, kept for all backends."""
    scores = make_scores(kind, n, k)
    return scores, sinkhorn(scores.double(), epsilon=epsilon)


@functools.lru_cache(maxsize=2)
def large_case(kind: str, n: int, k: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """As `small_case`, but only the latest stay in memory."""
    return small_case.__wrapped__(kind, n, k, epsilon)


@pytest.mark.heavy
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_small_grid(backend: str, device: str, kind: str, epsilon: float) -> None:
    for n, k in SMALL_SHAPES:
        scores, wanted = small_case(kind, n, k, epsilon)
        codes = sk.sinkhorn(scores.to(device), epsilon=epsilon, backend=backend)
        assert codes.dtype == torch.float32
        assert_codes(codes, wanted, scores, epsilon)


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_small_shapes_that_an_interpreter_can_run(backend: str, device: str, kind: str) -> None:
    for (n, k), epsilon in zip(INTERPRETER_SHAPES, EPSILONS, strict=True):
        scores, wanted = small_case(kind, n, k, epsilon)
        assert_codes(
            sk.sinkhorn(scores.to(device), 3, epsilon, backend=backend), wanted, scores, epsilon
        )


@pytest.mark.heavy
@pytest.mark.parametrize(("n", "k", "kind", "epsilon"), LARGE_CASES)
def test_large_grid(backend: str, device: str, n: int, k: int, kind: str, epsilon: float) -> None:
    scores, wanted = large_case(kind, n, k, epsilon)
    codes = sk.sinkhorn(scores.to(device), epsilon=epsilon, backend=backend)
    assert_codes(codes, wanted, scores, epsilon)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_half_scores_give_float32_codes_to_the_same_bound(
    backend: str, device: str, kind: str, dtype: torch.dtype
) -> None:
    for n, k, epsilon in ((1, 3, 0.005), (63, 300, 0.03), (64, 1, 0.05), (2, 301, 0.5)):
        scores = make_scores(kind, n, k).to(dtype)
        codes = sk.sinkhorn(scores.to(device), epsilon=epsilon, backend=backend)
        assert codes.dtype == torch.float32
        assert_codes(codes, sinkhorn(scores.double(), epsilon=epsilon), scores, epsilon)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_large_half_scores(backend: str, device: str, kind: str, dtype: torch.dtype) -> None:
    scores = make_scores(kind, 513, 301).to(dtype)
    codes = sk.sinkhorn(scores.to(device), epsilon=0.03, backend=backend)
    assert_codes(codes, sinkhorn(scores.double(), epsilon=0.03), scores, 0.03)
