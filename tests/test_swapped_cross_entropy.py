"""The swapped cross-entropy against the literal double loop over crop pairs."""

import pytest
import torch
from compare import (
    HALF_DTYPES,
    assert_gradient,
    assert_loss,
    assert_no_worse_than_eager,
    generator,
    largest,
    random_codes,
    strided_layouts,
    swapped_cross_entropy,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.op("swapped_cross_entropy")

ASSIGNS = [(0,), (0, 1), (0, 1, 2), (2, 0)]
# (V, B, K): one sample, one prototype, around a tile, several tiles, no multiple of anything
SHAPES = [(2, 1, 1), (2, 1, 300), (3, 64, 3), (2, 63, 37), (2, 5, 1001), (3, 65, 130)]


def make_scores(num_crops: int, num_samples: int, num_prototypes: int) -> Tensor:
    """Float32 cosines [V, B, K]."""
    features = unit_rows(num_crops, num_samples, 16, seed=num_samples)
    return (features @ unit_rows(num_prototypes, 16, seed=7).T).float()


def check(
    scores: Tensor,
    codes: Tensor,
    backend: str,
    device: str,
    temperature: float = 0.1,
    assign=(0, 1),
) -> None:
    """Hold value and gradient to the bounds."""
    loss, (gradient,) = value_and_gradients(
        lambda s: sk.swapped_cross_entropy(
            s, codes.to(device), temperature, assign=assign, backend=backend
        ),
        scores.to(device),
    )
    wanted, (wanted_gradient,) = value_and_gradients(
        lambda s: swapped_cross_entropy(s, codes.double(), temperature, assign), scores.double()
    )
    assert loss.dtype == torch.float32
    assert_loss(loss, wanted, temperature)
    assert_gradient(gradient, wanted_gradient)


@pytest.mark.parametrize(("num_crops", "num_samples", "num_prototypes"), SHAPES)
def test_shapes(
    backend: str, device: str, num_crops: int, num_samples: int, num_prototypes: int
) -> None:
    scores = make_scores(num_crops, num_samples, num_prototypes)
    check(scores, random_codes(2, num_samples, num_prototypes), backend, device)


@pytest.mark.heavy
def test_a_large_shape(backend: str, device: str) -> None:
    check(make_scores(4, 64, 3001), random_codes(2, 64, 3001), backend, device)


@pytest.mark.parametrize("num_crops", range(2, 9))
def test_numbers_of_crops(backend: str, device: str, num_crops: int) -> None:
    scores = make_scores(num_crops, 5, 37)
    for assign in ASSIGNS:
        if max(assign) < num_crops:
            check(scores, random_codes(len(assign), 5, 37), backend, device, assign=assign)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.1, 1.0, 10.0])
def test_temperatures(backend: str, device: str, temperature: float) -> None:
    check(make_scores(3, 33, 37), random_codes(2, 33, 37), backend, device, temperature)


def test_defaults(backend: str, device: str) -> None:
    scores, codes = make_scores(3, 33, 37).to(device), random_codes(2, 33, 37).to(device)
    explicit = sk.swapped_cross_entropy(scores, codes, 0.1, assign=(0, 1), backend=backend)
    assert torch.equal(sk.swapped_cross_entropy(scores, codes, backend=backend), explicit)


@pytest.mark.parametrize("row_sum", [0.0, 0.5, 1.01])
def test_codes_whose_rows_do_not_sum_to_one(backend: str, device: str, row_sum: float) -> None:
    codes = random_codes(2, 33, 37)
    check(make_scores(3, 33, 37), codes * row_sum, backend, device)
    codes[:, ::2] *= row_sum  # some rows only
    check(make_scores(3, 33, 37), codes, backend, device)


def test_unnormalised_and_hard_codes(backend: str, device: str) -> None:
    scores = make_scores(3, 33, 37)
    check(scores, torch.rand(2, 33, 37, generator=generator(0)), backend, device)
    check(scores, torch.eye(37)[random_codes(2, 33, 37).argmax(-1)], backend, device)


def test_large_scores_do_not_overflow(backend: str, device: str) -> None:
    check(make_scores(3, 33, 37) * 1e4, random_codes(2, 33, 37), backend, device)


def test_masked_scores(backend: str, device: str) -> None:
    scores = make_scores(3, 33, 37)
    scores[:, :, [0, 36]] = -torch.inf  # no code falls on them
    scores[0, 4, 1:30] = -torch.inf
    codes = random_codes(2, 33, 37)
    codes[:, :, [0, 36]] = 0
    codes[:, 4, 1:30] = 0
    loss, (gradient,) = value_and_gradients(
        lambda s: sk.swapped_cross_entropy(s, codes.to(device), backend=backend), scores.to(device)
    )
    finite = scores.clamp_min(-1e5).double()  # p = 0 there too, and a finite product with the code
    wanted, (wanted_gradient,) = value_and_gradients(
        lambda s: swapped_cross_entropy(s, codes.double()), finite
    )
    assert_loss(loss, wanted)
    assert_gradient(gradient, wanted_gradient)
    assert torch.equal(gradient[:, :, 0], torch.zeros_like(gradient[:, :, 0]))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("shape", [(2, 33, 37), (4, 7, 300)])
def test_half_inputs_are_no_worse_than_eager(
    backend: str, device: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    scores = make_scores(*shape).to(dtype).to(device)
    codes = random_codes(2, *shape[1:]).to(dtype).to(device)
    assert_no_worse_than_eager(
        lambda s: sk.swapped_cross_entropy(s, codes, backend=backend),
        lambda s: swapped_cross_entropy(s, codes.to("cpu", s.dtype)),
        scores,
    )


def test_mixed_dtypes(backend: str, device: str) -> None:
    codes = random_codes(2, 33, 37)
    for dtype in HALF_DTYPES:
        scores = make_scores(3, 33, 37).to(dtype)
        loss, (gradient,) = value_and_gradients(
            lambda s: sk.swapped_cross_entropy(s, codes.to(device), backend=backend),
            scores.to(device),
        )
        wanted, (wanted_gradient,) = value_and_gradients(
            lambda s: swapped_cross_entropy(s, codes.double()), scores.double()
        )
        assert loss.dtype == torch.float32
        assert gradient.dtype == dtype
        assert_loss(loss, wanted)
        rounding = torch.finfo(dtype).eps * largest(wanted_gradient)
        assert largest(gradient.double().cpu() - wanted_gradient) <= rounding


def test_codes_that_require_grad_are_detached(backend: str, device: str) -> None:
    scores = make_scores(2, 5, 7).to(device).requires_grad_()
    codes = random_codes(2, 5, 7).to(device).requires_grad_()
    sk.swapped_cross_entropy(scores, codes, backend=backend).backward()
    assert scores.grad is not None
    assert codes.grad is None
    assert not sk.swapped_cross_entropy(scores.detach(), codes, backend=backend).requires_grad


def test_no_gradient_without_need(backend: str, device: str) -> None:
    scores = make_scores(2, 5, 7).to(device).requires_grad_()
    codes = random_codes(2, 5, 7).to(device)
    with torch.no_grad():
        assert not sk.swapped_cross_entropy(scores, codes, backend=backend).requires_grad


def test_the_incoming_gradient_multiplies(backend: str, device: str) -> None:
    scores, codes = make_scores(2, 5, 7).to(device), random_codes(2, 5, 7).to(device)
    _, (once,) = value_and_gradients(
        lambda s: sk.swapped_cross_entropy(s, codes, backend=backend), scores
    )
    _, (scaled,) = value_and_gradients(
        lambda s: -4 * sk.swapped_cross_entropy(s, codes, backend=backend), scores
    )
    assert torch.equal(scaled, -4 * once)


@pytest.mark.float64
def test_float64_and_gradcheck(backend: str, device: str) -> None:
    scores = make_scores(3, 4, 5).double().to(device).requires_grad_()
    for row_sum in (1.0, 0.5):
        codes = random_codes(2, 4, 5).double().to(device) * row_sum
        loss = sk.swapped_cross_entropy(scores, codes, 0.5, backend=backend)
        assert loss.dtype == torch.float64
        wanted = swapped_cross_entropy(scores.detach(), codes, 0.5)
        assert abs(loss.item() - wanted.item()) <= 1e-13
        assert torch.autograd.gradcheck(
            lambda s, q=codes: sk.swapped_cross_entropy(s, q, 0.5, backend=backend), scores
        )


def test_strided_inputs(backend: str, device: str) -> None:
    scores, codes = make_scores(2, 7, 16).to(device), random_codes(2, 7, 16).to(device)
    for (_, s), (_, q) in zip(strided_layouts(scores), strided_layouts(codes), strict=True):
        got, (gradient,) = value_and_gradients(
            lambda x, q=q: sk.swapped_cross_entropy(x, q, backend=backend), s
        )
        plain, (plain_gradient,) = value_and_gradients(
            lambda x, q=q: sk.swapped_cross_entropy(x, q.contiguous(), backend=backend),
            s.contiguous(),
        )
        assert torch.equal(got, plain)
        assert torch.equal(gradient, plain_gradient)


def test_empty_batch(backend: str, device: str) -> None:
    scores = torch.empty(2, 0, 5, device=device, requires_grad=True)
    loss = sk.swapped_cross_entropy(scores, torch.empty(2, 0, 5, device=device), backend=backend)
    assert loss.item() == 0
    loss.backward()
    assert scores.grad.shape == (2, 0, 5)
