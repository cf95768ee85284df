"""Scores and their gradients against float64 matrix products."""

import pytest
import torch
from compare import (
    HALF_DTYPES,
    assert_gradient,
    assert_no_worse_than_eager,
    l2_normalize,
    largest,
    strided_layouts,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.op("prototype_scores")

# (N, K, D): degenerate; below, around and above a tile; a tall, a wide and a deep one
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (63, 37, 17),
    (65, 130, 128),
    (7, 300, 33),
    (130, 3, 64),
    (5, 7, 300),
]


def weighted_sum(scores: Tensor) -> Tensor:
    """A scalar whose gradient differs at every score."""
    weights = torch.sin(torch.arange(scores.numel(), device=scores.device).double()).view(
        scores.shape
    )
    return (scores * weights.to(scores.dtype)).sum()


@pytest.mark.parametrize(("n", "k", "dim"), SHAPES)
def test_value_and_gradients(backend: str, device: str, n: int, k: int, dim: int) -> None:
    features = unit_rows(n, dim, seed=n, dtype=torch.float32)
    prototypes = unit_rows(k, dim, seed=k + 1, dtype=torch.float32)
    scores = sk.prototype_scores(features.to(device), prototypes.to(device), backend=backend)
    assert scores.dtype == torch.float32
    assert scores.shape == (n, k)
    assert largest(scores.double().cpu() - features.double() @ prototypes.double().T) <= 1e-6

    _, gradients = value_and_gradients(
        lambda z, c: weighted_sum(sk.prototype_scores(z, c, backend=backend)),
        features.to(device),
        prototypes.to(device),
    )
    _, wanted = value_and_gradients(
        lambda z, c: weighted_sum(z @ c.T), features.double(), prototypes.double()
    )
    for got, want in zip(gradients, wanted, strict=True):
        assert_gradient(got, want)


@pytest.mark.parametrize("leading", [(), (3,), (2, 5), (2, 1, 4), (0,), (2, 0)])
def test_leading_dimensions(backend: str, device: str, leading: tuple[int, ...]) -> None:
    features = unit_rows(*leading, 17, seed=1, dtype=torch.float32).to(device).requires_grad_()
    prototypes = unit_rows(5, 17, seed=2, dtype=torch.float32).to(device).requires_grad_()
    scores = sk.prototype_scores(features, prototypes, backend=backend)
    assert scores.shape == (*leading, 5)
    torch.testing.assert_close(scores, features @ prototypes.T, rtol=0, atol=1e-6)
    scores.sum().backward()
    assert features.grad.shape == features.shape
    if scores.numel() == 0:
        assert torch.equal(prototypes.grad, torch.zeros_like(prototypes))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_inputs(backend: str, device: str, dtype: torch.dtype) -> None:
    features = unit_rows(63, 128, seed=1, dtype=dtype)
    prototypes = unit_rows(37, 128, seed=2, dtype=dtype)
    scores = sk.prototype_scores(features.to(device), prototypes.to(device), backend=backend).cpu()
    wanted = features.double() @ prototypes.double().T
    assert scores.dtype == dtype
    assert largest(scores - wanted) <= 1.1 * largest(features @ prototypes.T - wanted)
    assert_no_worse_than_eager(
        lambda z, c: weighted_sum(sk.prototype_scores(z, c, backend=backend).float()),
        lambda z, c: weighted_sum((z @ c.T).to(torch.promote_types(z.dtype, torch.float32))),
        features.to(device),
        prototypes.to(device),
    )


def test_normalize_and_the_gradient_through_it(backend: str, device: str) -> None:
    features = unit_rows(33, 17, seed=1) * torch.logspace(-3, 3, 33).double().unsqueeze(1)
    features, prototypes = features.float(), unit_rows(5, 17, seed=2, dtype=torch.float32)
    value, gradients = value_and_gradients(
        lambda z, c: weighted_sum(sk.prototype_scores(z, c, normalize=True, backend=backend)),
        features.to(device),
        prototypes.to(device),
    )
    wanted_value, wanted = value_and_gradients(
        lambda z, c: weighted_sum(l2_normalize(z) @ c.T), features.double(), prototypes.double()
    )
    assert abs(value.item() - wanted_value.item()) <= 1e-5
    rows = features.double().norm(
        dim=1, keepdim=True
    )  # gradients scale with 1 / |z|: compare by row
    assert_gradient(gradients[0] * rows.to(device), wanted[0] * rows)
    assert_gradient(gradients[1], wanted[1])


def test_short_rows_are_normalised_to_length_1(backend: str, device: str) -> None:
    features = unit_rows(9, 16, seed=1, dtype=torch.float32).to(device)
    prototypes = unit_rows(37, 16, seed=2, dtype=torch.float32).to(device)
    wanted = sk.prototype_scores(features, prototypes, backend=backend)
    for length in (1e-4, 1e-9):
        got = sk.prototype_scores(features * length, prototypes, normalize=True, backend=backend)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_a_zero_row_normalises_to_zero_with_a_zero_gradient(backend: str, device: str) -> None:
    features = unit_rows(3, 4, seed=1, dtype=torch.float32).to(device)
    features[1] = 0
    features.requires_grad_()
    prototypes = unit_rows(5, 4, seed=2, dtype=torch.float32).to(device)
    scores = sk.prototype_scores(features, prototypes, normalize=True, backend=backend)
    assert torch.equal(scores[1], torch.zeros_like(scores[1]))
    weighted_sum(scores).backward()
    assert torch.equal(features.grad[1], torch.zeros_like(features.grad[1]))
    assert features.grad[[0, 2]].abs().min() > 0


@pytest.mark.float64
def test_gradcheck(backend: str, device: str) -> None:
    features = unit_rows(2, 3, 4, seed=1).to(device).requires_grad_()
    prototypes = unit_rows(5, 4, seed=2).to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, c: sk.prototype_scores(z, c, backend=backend), (features, prototypes)
    )
    assert torch.autograd.gradcheck(
        lambda z, c: sk.prototype_scores(z, c, normalize=True, backend=backend),
        (features, prototypes),
    )


def test_strided_inputs(backend: str, device: str) -> None:
    features = unit_rows(33, 16, seed=1, dtype=torch.float32).to(device)
    prototypes = unit_rows(5, 16, seed=2, dtype=torch.float32).to(device)
    for (_, z), (_, c) in zip(strided_layouts(features), strided_layouts(prototypes), strict=True):
        got = sk.prototype_scores(z, c, backend=backend)
        plain = sk.prototype_scores(z.contiguous(), c.contiguous(), backend=backend)
        assert torch.equal(got, plain)
        upstream = torch.randn(5, 33, device=device).T  # the incoming gradient may be transposed
        leaf = z.detach().requires_grad_()
        sk.prototype_scores(leaf, c, backend=backend).backward(upstream)
        torch.testing.assert_close(leaf.grad, upstream @ c, rtol=0, atol=1e-5)


def test_only_needed_gradients(backend: str, device: str) -> None:
    features = unit_rows(3, 4, seed=1, dtype=torch.float32).to(device)
    prototypes = unit_rows(5, 4, seed=2, dtype=torch.float32).to(device)
    assert not sk.prototype_scores(features, prototypes, backend=backend).requires_grad
    leaf = prototypes.clone().requires_grad_()
    sk.prototype_scores(features, leaf, backend=backend).sum().backward()
    torch.testing.assert_close(leaf.grad, features.sum(0).expand(5, 4), rtol=0, atol=1e-6)
    leaf = features.clone().requires_grad_()
    sk.prototype_scores(leaf, prototypes, backend=backend).sum().backward()
    torch.testing.assert_close(leaf.grad, prototypes.sum(0).expand(3, 4), rtol=0, atol=1e-6)
    with torch.no_grad():
        assert not sk.prototype_scores(leaf, prototypes, backend=backend).requires_grad
