"""`prototype_cross_entropy` on every backend, against float64."""

import pytest
import torch
from compare import (
    HALF_DTYPES,
    assert_gradient,
    assert_loss,
    assert_no_worse_than_eager,
    largest,
    random_codes,
    strided_layouts,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.op("swapped_cross_entropy")

SHAPES = [
    (1, 5),  # one row: all but the row that fills the second half
    (2, 1),  # one prototype: the loss is 0
    (7, 3),  # odd, less than a vector
    (32, 37),  # even, no multiple of a vector
    (33, 130),  # odd, two vectors and a rest
]


def scores_of(n: int, k: int) -> Tensor:
    """Float32 cosines [N, K]."""
    return (unit_rows(n, 16, seed=n) @ unit_rows(k, 16, seed=k + 1).T).float()


def oracle(scores: Tensor, codes: Tensor, temperature: float, weights: Tensor | None) -> Tensor:
    """One row at a time, in the dtype of the scores."""
    loss = scores.new_zeros(())
    for b, row in enumerate(scores):
        log_p = row / temperature - torch.logsumexp(row / temperature, 0)
        terms = [q * log_p[k] for k, q in enumerate(codes[b]) if q != 0]
        weight = 1.0 if weights is None else weights[b].item()
        loss = loss - weight * sum(terms, start=scores.new_zeros(()))
    return loss / max(len(scores), 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(
    shape: tuple[int, int], weighted: bool, backend: str, device: str
) -> None:
    scores, codes = scores_of(*shape), random_codes(*shape)
    weights = torch.linspace(0, 2, shape[0]) if weighted else None
    wanted, (gradient,) = value_and_gradients(
        lambda s: oracle(s, codes.double(), 0.2, weights), scores.double()
    )
    loss, (d_scores,) = value_and_gradients(
        lambda s: sk.prototype_cross_entropy(
            s, codes.to(device), 0.2, None if weights is None else weights.to(device),
            backend=backend,
        ),
        scores.to(device),
    )  # fmt: skip
    assert loss.dtype == d_scores.dtype == torch.float32
    assert_loss(loss.cpu(), wanted, 0.2)
    assert_gradient(d_scores, gradient)


def test_weights_of_one_are_the_mean_and_of_zero_nothing(backend: str, device: str) -> None:
    scores, codes = scores_of(9, 6).to(device), random_codes(9, 6).to(device)
    mean = sk.prototype_cross_entropy(scores, codes, backend=backend)
    ones = sk.prototype_cross_entropy(
        scores, codes, weights=torch.ones(9, device=device), backend=backend
    )
    assert_loss(ones.cpu(), mean.double().cpu())
    some = torch.tensor([1.0] * 4 + [0.0] * 5, device=device)
    part = sk.prototype_cross_entropy(scores, codes, weights=some, backend=backend)
    alone = sk.prototype_cross_entropy(scores[:4], codes[:4], backend=backend)
    assert_loss(part.cpu(), alone.double().cpu() * 4 / 9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_of_weight_0_makes_no_plausible_loss(
    value: float, backend: str, device: str
) -> None:
    """Its gradient is NaN, and the loss says so; codes of 0 on a mask are 0 all the same."""
    scores, codes = scores_of(4, 3), random_codes(4, 3)
    scores[0, 1] = -torch.inf
    scores[1] = value
    weights = torch.tensor([0.0, 0.0, 1.0, 1.0])
    loss, (d_scores,) = value_and_gradients(
        lambda s: sk.prototype_cross_entropy(
            s, codes.to(device), weights=weights.to(device), backend=backend
        ),
        scores.to(device),
    )
    assert loss.isnan()
    assert d_scores[1].isnan().all()
    assert d_scores[2:].isfinite().all()


def test_masked_scores_and_codes_of_any_sum(backend: str, device: str) -> None:
    scores, codes = scores_of(11, 8), random_codes(11, 8) * 1.7
    scores[2, 3] = scores[10, :5] = -torch.inf
    codes[2, 3] = codes[10, :5] = 0
    codes[4] = 0
    finite = scores.double().nan_to_num(neginf=-1e9)
    wanted, (gradient,) = value_and_gradients(
        lambda s: oracle(s, codes.double(), 0.1, None), finite
    )
    loss, (d_scores,) = value_and_gradients(
        lambda s: sk.prototype_cross_entropy(s, codes.to(device), backend=backend),
        scores.to(device),
    )
    assert_loss(loss.cpu(), wanted)
    assert_gradient(d_scores, gradient)
    assert (d_scores[4] == 0).all()


@pytest.mark.parametrize("rows", [6, 7])
def test_layouts(rows: int, backend: str, device: str) -> None:
    scores, codes = scores_of(rows, 5).to(device), random_codes(rows, 5).to(device)
    wanted, gradients = value_and_gradients(
        lambda s: sk.prototype_cross_entropy(s, codes, backend=backend), scores
    )
    for layout, strided in strided_layouts(scores):
        if layout == "first dimension expanded":
            continue  # other values
        loss, (d_scores,) = value_and_gradients(
            lambda s: sk.prototype_cross_entropy(s, codes, backend=backend), strided
        )
        assert torch.equal(loss, wanted), layout
        assert torch.equal(d_scores, gradients[0]), layout


def test_no_rows(backend: str, device: str) -> None:
    scores = torch.zeros(0, 4, device=device, requires_grad=True)
    loss = sk.prototype_cross_entropy(scores, torch.zeros(0, 4, device=device), backend=backend)
    (d_scores,) = torch.autograd.grad(loss, scores)
    assert loss == 0
    assert d_scores.shape == (0, 4)


@pytest.mark.float64
def test_float64(backend: str, device: str) -> None:
    scores, codes = scores_of(7, 5).double().to(device), random_codes(7, 5).to(device)
    loss = sk.prototype_cross_entropy(scores, codes, backend=backend)
    assert loss.dtype == torch.float64
    wanted = oracle(scores.cpu(), codes.double().cpu(), 0.1, None)
    assert abs(loss.item() - wanted.item()) <= 1e-14 * wanted.item()
    assert torch.autograd.gradcheck(
        lambda s: sk.prototype_cross_entropy(s, codes, backend=backend), scores.requires_grad_()
    )


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half(dtype: torch.dtype, backend: str, device: str) -> None:
    codes = random_codes(33, 37).to(device, dtype)

    def eager(scores: Tensor) -> Tensor:
        log_p = torch.log_softmax(scores / 0.1, -1)
        return -(codes.cpu().to(scores) * log_p).sum(-1).mean()

    scores = scores_of(33, 37).to(device, dtype)
    assert_no_worse_than_eager(
        lambda s: sk.prototype_cross_entropy(s, codes, backend=backend), eager, scores
    )


def test_teacher_and_weights_carry_no_gradient(backend: str, device: str) -> None:
    scores = scores_of(5, 4).to(device).requires_grad_()
    codes = random_codes(5, 4).to(device).requires_grad_()
    weights = torch.ones(5, device=device, requires_grad=True)
    loss = sk.prototype_cross_entropy(scores, codes, 0.1, weights, backend=backend)
    loss.backward()
    assert codes.grad is None
    assert weights.grad is None
    assert largest(scores.grad) > 0


def test_autocast_leaves_its_precision(backend: str, device: str) -> None:
    scores, codes = scores_of(6, 5).to(device), random_codes(6, 5).to(device)
    wanted = sk.prototype_cross_entropy(scores, codes, backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = sk.prototype_cross_entropy(
            student_scores=scores, teacher_codes=codes, backend=backend
        )
    assert torch.equal(loss, wanted)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "student_scores must be a torch.Tensor", {"student_scores": [1.0]}),
        (ValueError, r"student_scores must have shape \[N, K\]", {"student_scores": "flat"}),
        (ValueError, "K >= 1", {"student_scores": "narrow", "teacher_codes": "narrow"}),
        (ValueError, "teacher_codes must have shape", {"teacher_codes": "narrow"}),
        (ValueError, "weights must have shape", {"weights": torch.ones(3)}),
        (TypeError, "weights must have a floating dtype", {"weights": torch.ones(4).long()}),
        (ValueError, "temperature must be a positive number", {"temperature": 0.0}),
        (ValueError, "unknown backend", {"backend": "fast"}),
    ],
)
def test_refusals(error: type[Exception], message: str, change: dict[str, object]) -> None:
    odd = {"flat": torch.ones(4), "narrow": torch.ones(4, 0)}
    arguments = {"student_scores": torch.ones(4, 2), "teacher_codes": torch.ones(4, 2)}
    arguments |= {k: odd.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(error, match=f"^prototype_cross_entropy: .*{message}"):
        sk.prototype_cross_entropy(**arguments)
