"""Every argument of sinkhorn and sinkhorn_potentials, and the gauge rule, against the oracle."""

import pytest
import torch
from compare import (
    HALF_DTYPES,
    SCORE_KINDS,
    assert_codes,
    generator,
    make_scores,
    sinkhorn,
    sinkhorn_bound,
)
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.op("sinkhorn")


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_iterations(backend: str, device: str, iterations: int) -> None:
    scores = make_scores("cosines", 63, 37)
    wanted = sinkhorn(scores.double(), iterations)
    assert_codes(sk.sinkhorn(scores.to(device), iterations, backend=backend), wanted, scores, 0.05)


@pytest.mark.parametrize(
    ("n", "k", "epsilon"),
    [
        (63, 2, 0.05),
        pytest.param(63, 2, 0.005, marks=pytest.mark.heavy),
        pytest.param(2, 63, 0.05, marks=pytest.mark.heavy),
        pytest.param(1, 300, 0.05, marks=pytest.mark.heavy),
        pytest.param(1, 300, 0.005, marks=pytest.mark.heavy),
        pytest.param(64, 1, 0.005, marks=pytest.mark.heavy),
    ],
)
def test_digits_do_not_wear_off_with_iterations(
    backend: str, device: str, n: int, k: int, epsilon: float
) -> None:
    """Sums of 1 a column and 1 a row move u and a apart by N / K in each: 300^60 has no float32."""
    scores = make_scores("masked" if n > 2 else "cosines", n, k)
    weights = torch.rand(k, generator=generator(1)) + 0.1
    for r in (None, weights):
        wanted = sinkhorn(
            scores.double(), 60, epsilon, prototype_weights=None if r is None else r.double()
        )
        keywords = {"prototype_weights": None if r is None else r.to(device), "backend": backend}
        codes = sk.sinkhorn(scores.to(device), 60, epsilon, **keywords)
        assert_codes(codes, wanted, scores, epsilon)
        f = sk.sinkhorn_potentials(scores.to(device), 60, epsilon, **keywords)
        codes = torch.softmax(scores.double() / epsilon + f.double().cpu(), -1)
        assert_codes(codes, wanted, scores, epsilon)


@pytest.mark.parametrize("group_of", [None, 2])
def test_zero_iterations_are_n_e_over_the_sum_of_e(
    backend: str, device: str, group_of: int | None
) -> None:
    scores = make_scores("shifted", 37 if group_of is None else 36, 41)
    problems = scores.double().view(group_of or 1, -1, 41)
    e = (problems / 0.5).exp()
    wanted = problems.shape[1] * e / e.sum((1, 2), keepdim=True)
    inputs = scores if group_of is None else scores.view(group_of, -1, 41)
    codes = (
        sk.sinkhorn(inputs.to(device), iterations=0, epsilon=0.5, backend=backend).double().cpu()
    )
    error = (codes - wanted.view(inputs.shape)).abs().max()
    assert error <= sinkhorn_bound(scores, 0.5) * wanted.max().clamp_min(1)


@pytest.mark.float64
def test_float64_stays_float64(backend: str, device: str) -> None:
    for kind in SCORE_KINDS:
        scores = make_scores(kind, 63, 37).double()
        codes = sk.sinkhorn(scores.to(device), epsilon=0.05, backend=backend)
        assert codes.dtype == torch.float64
        bound = 1e-12 + 2.0**-50 * scores[scores.isfinite()].abs().max() / 0.05
        assert (codes.cpu() - sinkhorn(scores)).abs().max() <= bound


def test_batched_problems_equal_separate_ones(backend: str, device: str) -> None:
    problems = torch.stack([make_scores(kind, 33, 37) for kind in ("cosines", "shifted", "masked")])
    codes = sk.sinkhorn(problems.to(device), backend=backend)
    f = sk.sinkhorn_potentials(problems.to(device), backend=backend)
    assert codes.shape == problems.shape
    assert f.shape == (3, 37)
    for scores, got in zip(problems, codes, strict=True):
        assert_codes(got, sinkhorn(scores.double()), scores, 0.05)
        assert torch.equal(got, sk.sinkhorn(scores.to(device), backend=backend))


def test_prototype_weights_set_the_marginals(backend: str, device: str) -> None:
    scores = make_scores("cosines", 63, 37)
    weights = torch.rand(37, generator=generator(1)) + 0.1
    wanted = sinkhorn(scores.double(), prototype_weights=weights.double())
    for scale in (1, 1000):  # only their ratios matter
        codes = sk.sinkhorn(
            scores.to(device), prototype_weights=weights.to(device) * scale, backend=backend
        )
        assert_codes(codes, wanted, scores, 0.05)
    many = sk.sinkhorn(
        scores.to(device), 100, 0.5, prototype_weights=weights.to(device), backend=backend
    )
    torch.testing.assert_close(many.mean(0).cpu(), weights / weights.sum(), rtol=1e-4, atol=0)


def test_sample_weights_multiply_the_column_sums(backend: str, device: str) -> None:
    scores = make_scores("cosines", 62, 37)
    weights = torch.rand(62, generator=generator(2))
    weights[[0, 7, 61]] = 0  # such a row counts for nothing and still gets codes
    wanted = sinkhorn(scores.double(), sample_weights=weights.double())
    codes = sk.sinkhorn(scores.to(device), sample_weights=weights.to(device), backend=backend)
    assert_codes(codes, wanted, scores, 0.05)
    kept = weights > 0
    without = sinkhorn(scores[kept].double(), sample_weights=weights[kept].double())
    assert_codes(codes[kept.to(device)], without, scores, 0.05)

    problems = scores.view(2, 31, 37)
    per_problem = sk.sinkhorn(
        problems.to(device), sample_weights=weights.view(2, 31).to(device), backend=backend
    )
    shared = sk.sinkhorn(
        problems.to(device), sample_weights=weights[:31].to(device), backend=backend
    )
    for a in range(2):
        w = weights.view(2, 31)[a].double()
        assert_codes(per_problem[a], sinkhorn(problems[a].double(), sample_weights=w), scores, 0.05)
        w = weights[:31].double()
        assert_codes(shared[a], sinkhorn(problems[a].double(), sample_weights=w), scores, 0.05)


def test_integer_weights_repeat_rows(backend: str, device: str) -> None:
    scores = make_scores("cosines", 9, 5)
    counts = torch.tensor([1, 2, 0, 3, 1, 1, 5, 1, 2])
    wanted = sinkhorn(scores.double().repeat_interleave(counts, 0))
    codes = sk.sinkhorn(
        scores.to(device), sample_weights=counts.float().to(device), backend=backend
    )
    assert_codes(codes.repeat_interleave(counts.to(device), 0), wanted, scores, 0.05)


@pytest.mark.parametrize("epsilon", [0.005, 0.05, 0.5])
def test_a_score_bound_gives_the_same(backend: str, device: str, epsilon: float) -> None:
    scores = make_scores("cosines", 63, 37)
    wanted = sinkhorn(scores.double(), epsilon=epsilon)
    for bound in (1.0, 3.0):
        codes = sk.sinkhorn(scores.to(device), epsilon=epsilon, score_bound=bound, backend=backend)
        assert_codes(codes, wanted, scores, epsilon)


def test_bfloat16_precision_is_accepted(backend: str, device: str) -> None:
    scores = make_scores("cosines", 63, 37)
    codes = sk.sinkhorn(scores.to(device), precision="bfloat16", backend=backend).double().cpu()
    wanted = sinkhorn(scores.double())
    assert (codes - wanted).abs().max() <= 0.04 * wanted.max()  # bfloat16 scores cost 4 %
    assert (codes.sum(-1) - 1).abs().max() <= 1e-2


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_prototypes", [3, 300, 3001, 3008])
def test_potentials_of_more_scores_than_a_cache_holds(
    backend: str, device: str, num_prototypes: int, precision: str
) -> None:
    scores = make_scores("cosines", 130 if num_prototypes > 3 else 100_001, num_prototypes)
    for iterations in (1, 2, 4):
        wanted = sinkhorn(scores.double(), iterations=iterations)
        f = sk.sinkhorn_potentials(
            scores.to(device), iterations, precision=precision, backend=backend
        )
        codes = torch.softmax(scores.double() / 0.05 + f.double().cpu(), -1)
        if precision == "float32":
            assert_codes(codes.float(), wanted, scores, 0.05)
        else:  # every number that is kept may be off by 2^-9
            assert ((codes - wanted).abs() <= 0.008 * wanted + 1e-6).all()


def test_out_is_written_and_returned(backend: str, device: str) -> None:
    scores = make_scores("cosines", 63, 37).to(device)
    fresh = sk.sinkhorn(scores, backend=backend)
    out = torch.full_like(scores, torch.nan)
    assert sk.sinkhorn(scores, out=out, backend=backend) is out
    assert torch.equal(out, fresh)
    in_place = scores.clone()
    assert sk.sinkhorn(in_place, out=in_place, backend=backend) is in_place
    assert torch.equal(in_place, fresh)
    problems = scores[:62].view(2, 31, 37)
    out = torch.full_like(problems, torch.nan)
    assert sk.sinkhorn(problems, out=out, backend=backend) is out
    assert torch.equal(out, sk.sinkhorn(problems, backend=backend))
    hard = torch.full_like(scores, torch.nan)
    sk.sinkhorn(scores, hard=True, out=hard, backend=backend)
    assert torch.equal(hard, sk.sinkhorn(scores, hard=True, backend=backend))
    zero = torch.full_like(scores, torch.nan)
    sk.sinkhorn(scores, 0, out=zero, backend=backend)
    assert torch.equal(zero, sk.sinkhorn(scores, 0, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES])
def test_hard_codes_are_one_hot_float32(backend: str, device: str, dtype: torch.dtype) -> None:
    scores = make_scores("cosines", 63, 37).to(dtype)
    codes = sk.sinkhorn(scores.to(device), hard=True, backend=backend)
    assert codes.dtype == torch.float32
    assert torch.equal(codes.double().cpu(), sinkhorn(scores.double(), hard=True))


@pytest.mark.parametrize("num_prototypes", [3, 37, 130])
def test_hard_ties_take_the_lowest_index(backend: str, device: str, num_prototypes: int) -> None:
    # equal columns have equal potentials, in a vector's body as in its tail
    scores = torch.full((5, num_prototypes), 0.3, device=device)
    codes = sk.sinkhorn(scores, hard=True, backend=backend)
    assert torch.equal(codes.argmax(-1), torch.zeros(5, dtype=torch.long, device=device))
    assert torch.equal(codes.sum(-1), torch.ones(5, device=device))
    scores = make_scores("cosines", 300, num_prototypes).to(device)
    scores[:, -1] = scores[:, 1]
    codes = sk.sinkhorn(scores, hard=True, backend=backend)
    assert codes[:, 1].sum() > 0
    assert codes[:, -1].sum() == 0


@pytest.mark.parametrize("iterations", [1, 3])
def test_potentials_are_codes_without_the_matrix(
    backend: str, device: str, iterations: int
) -> None:
    for kind in SCORE_KINDS:
        for n, k in ((1, 3), (63, 37)):
            scores = make_scores(kind, n, k)
            f = sk.sinkhorn_potentials(scores.to(device), iterations, backend=backend)
            assert f.shape == (k,)
            assert f.dtype == torch.float32
            codes = torch.softmax(scores.double() / 0.05 + f.double().cpu(), -1)
            assert_codes(codes, sinkhorn(scores.double(), iterations), scores, 0.05)


def test_potentials_take_the_arguments_of_sinkhorn(backend: str, device: str) -> None:
    scores = make_scores("cosines", 63, 37)
    weights = {
        "prototype_weights": torch.rand(37, generator=generator(1)) + 0.1,
        "sample_weights": torch.rand(63, generator=generator(2)),
    }
    f = sk.sinkhorn_potentials(
        scores.to(device), 2, 0.03, False, group=None, score_bound=1.0, precision="float32",
        check_finite=True, backend=backend, **{name: w.to(device) for name, w in weights.items()},
    )  # fmt: skip
    wanted = sinkhorn(scores.double(), 2, 0.03, **{name: w.double() for name, w in weights.items()})
    codes = torch.softmax(scores.double() / 0.03 + f.double().cpu(), -1)
    assert_codes(codes, wanted, scores, 0.03)


def test_gather_distributed_without_a_group_is_local(backend: str, device: str) -> None:
    scores = make_scores("cosines", 9, 5).to(device)
    local = sk.sinkhorn(scores, backend=backend)
    assert torch.equal(sk.sinkhorn(scores, 3, 0.05, True, backend=backend), local)
    assert torch.equal(sk.sinkhorn(scores, gather_distributed=True, backend=backend), local)


def test_codes_and_potentials_carry_no_gradient(backend: str, device: str) -> None:
    scores = make_scores("cosines", 9, 5).to(device).requires_grad_()
    assert not sk.sinkhorn(scores, backend=backend).requires_grad
    assert not sk.sinkhorn(scores, 0, backend=backend).requires_grad
    assert not sk.sinkhorn(scores, hard=True, backend=backend).requires_grad
    assert not sk.sinkhorn_potentials(scores, backend=backend).requires_grad


# --- the gauge rule: dyadic numbers, so that shifting rounds nothing --------------------------


def dyadic_scores() -> Tensor:
    """[33, 17] scores that are multiples of 1/256."""
    return (make_scores("cosines", 33, 17) * 256).round() / 256


@pytest.mark.parametrize("shift", ["constant", "per prototype"])
def test_gauge_shifts_that_change_nothing(backend: str, device: str, shift: str) -> None:
    scores = dyadic_scores()
    term = torch.full((1,), 2.5) if shift == "constant" else torch.arange(17) / 8
    shifted = scores + term
    assert torch.equal(shifted - term, scores)
    codes = sk.sinkhorn(shifted.to(device), backend=backend)
    assert_codes(codes, sinkhorn(scores.double()), shifted, 0.05)


def test_gauge_a_shift_per_sample_changes_what_the_oracle_says(backend: str, device: str) -> None:
    scores = dyadic_scores()
    shifted = scores + torch.arange(33).unsqueeze(1) / 64
    before, after = sinkhorn(scores.double()), sinkhorn(shifted.double())
    assert (after - before).abs().max() > 1e-3
    codes = sk.sinkhorn(shifted.to(device), 3, backend=backend)
    assert_codes(codes, after, shifted, 0.05)
