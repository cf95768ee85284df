"""Every op at random shapes, layouts and options, and over the whole range of numbers.

200 inputs a test on every run; under SWAV_TESTS_DEEP=1 20,000 shapes and 10,000 inputs of each
dtype. Where Triton is interpreted a share of these. Outputs are NaN before a kernel writes them.
"""

from collections.abc import Iterator

import pytest
import torch
from compare import (
    assert_codes,
    generator,
    largest,
    random_codes,
    sinkhorn,
    sinkhorn_bound,
    swapped_cross_entropy,
    swav_loss,
    value_and_gradients,
)
from conftest import INTERPRETED
from depth import count
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    FEW_ITERATIONS,
    LAYOUTS,
    Batch,
    Problem,
    batches,
    epsilons,
    examples,
    problems,
    sizes,
    stored,
)
from torch import Tensor

import swav_kernels as sk

shapes = examples(quick=200, deep=20_000, interpreted=6)
numbers = examples(quick=200, deep=10_000, interpreted=3)
MOST_SAMPLES, MOST_PROTOTYPES, MOST_DIM = (40, 300, 40) if INTERPRETED else (513, 4097, 300)
# numbers in a matrix: one in 32 is as large as it likes, and takes as long as the others
CELLS = [2**12] if INTERPRETED else [2**15] * 31 + [count(2**15, MOST_SAMPLES * MOST_PROTOTYPES)]
GUARD = 31  # numbers beside an output: it is not aligned either
layouts = st.sampled_from(LAYOUTS)
half_and_float32 = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
every_dtype = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.float64),
    ],
)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[int, int]:
    """(samples, prototypes): long, wide or without samples."""
    cells = draw(st.sampled_from(CELLS))
    if draw(st.booleans()):
        k = draw(sizes(1, MOST_PROTOTYPES))
        return draw(sizes(0, max(1, min(MOST_SAMPLES, cells // k)))), k
    n = draw(sizes(0, MOST_SAMPLES))
    return n, draw(sizes(1, max(1, min(MOST_PROTOTYPES, cells // max(n, 1)))))


any_problem = matrices().flatmap(
    lambda nk: problems(*map(st.just, nk), most=20.0, iterations=FEW_ITERATIONS)
)
any_batch = matrices().flatmap(
    lambda nk: batches(*map(st.just, nk), sizes(1, MOST_DIM), iterations=FEW_ITERATIONS)
)


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    """Let torch.empty return NaN, so that an element which no kernel writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=True)


def assert_near(gradient: Tensor, wanted: Tensor, bound: float, term: float) -> None:
    """An error of at most bound times the largest gradient, or term where terms cancel."""
    assert gradient.shape == wanted.shape
    error = largest(gradient.double().cpu() - wanted)
    assert error <= bound * max(largest(wanted), term)


def assert_loss_near(loss: Tensor, wanted: Tensor, temperature: float) -> None:
    """The bound of `assert_loss`, and what rounding s / temperature costs where |s| may be 1.

    Terms of |s| / temperature cancel in a loss, and no mean of many rows hides their rounding.
    """
    bound = 1e-6 * max(abs(wanted.item()), 1 / (10 * temperature)) + 2.0**-22 / temperature
    assert abs(loss.item() - wanted.item()) <= bound


def units(dtype: torch.dtype) -> tuple[float, float]:
    """What a sum's rounding costs, and what rounding a result to a half dtype costs beyond it."""
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    return unit, 0.0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.op("sinkhorn")
@shapes
@given(
    problem=any_problem, layout=layouts, dtype=half_and_float32, num_problems=st.integers(1, 3),
    weighted=st.sampled_from(["", "samples", "prototypes", "both"]), hard=st.booleans(),
)  # fmt: skip
def test_sinkhorn_of_any_shape(
    backend: str, device: str, problem: Problem, layout: str, dtype: torch.dtype,
    num_problems: int, weighted: str, hard: bool,
) -> None:  # fmt: skip
    one, g = problem.scores(dtype), generator(problem.seed)
    scores = stored(torch.stack([one.roll(i, -1) for i in range(num_problems)]), layout)
    weights = {}
    if weighted in ("samples", "both"):
        weights["sample_weights"] = torch.rand(problem.num_samples, generator=g) + 0.01
    if weighted in ("prototypes", "both"):
        weights["prototype_weights"] = torch.rand(problem.num_prototypes, generator=g) + 0.01
    keywords = {"backend": backend, "hard": hard, **problem.settings()}
    keywords |= {name: w.to(device) for name, w in weights.items()}
    storage = torch.full((scores.numel() + 2 * GUARD,), 7.0, device=device)
    codes = storage[GUARD : GUARD + scores.numel()].fill_(torch.nan).view(scores.shape)
    sk.sinkhorn(stored(scores.to(device), layout), out=codes, **keywords)
    assert (storage[:GUARD] == 7).all()
    assert (storage[GUARD + scores.numel() :] == 7).all()
    for s, q in zip(scores, codes.cpu(), strict=True):
        in_double = {name: w.double() for name, w in weights.items()}
        wanted = sinkhorn(s.double(), problem.iterations, problem.epsilon, **in_double)
        if not hard:
            assert_codes(q, wanted, s, problem.epsilon)
        elif len(q):  # one-hot, at the largest code or one that rounding cannot tell from it
            assert torch.equal(q.sort(-1).values[:, -1:], torch.ones(len(q), 1))
            assert torch.equal(q.sum(-1), torch.ones(len(q)))
            behind = wanted.amax(-1) - (q * wanted).sum(-1)
            assert largest(behind) <= 2 * sinkhorn_bound(s, problem.epsilon)


@shapes
@given(batch=any_batch, layout=layouts)
def test_potentials_of_any_shape(backend: str, device: str, batch: Batch, layout: str) -> None:
    features = stored(batch.features(), layout)
    prototypes = batch.prototypes()
    f = sk.swav_potentials(
        stored(features.to(device), layout), prototypes.to(device), backend=backend,
        **batch.sinkhorn(),
    )  # fmt: skip
    scores = features @ prototypes.T
    of_scores = sk.sinkhorn_potentials(scores.to(device), backend=backend, **batch.sinkhorn())
    if batch.num_samples:
        for g in (f, of_scores):
            logits = scores.double() / batch.epsilon + g.double().cpu().unsqueeze(1)
            for s, q in zip(scores, torch.softmax(logits, -1), strict=True):
                wanted = sinkhorn(s.double(), batch.iterations, batch.epsilon)
                # the scores themselves are rounded to float32, at most a few ulp of a cosine
                assert largest(q - wanted) <= 2e-6 + 2.0**-21 / batch.epsilon


@pytest.mark.op("prototype_scores")
@shapes
@given(batch=any_batch, layout=layouts, dtype=half_and_float32, normalize=st.booleans())
def test_prototype_scores_of_any_shape(
    backend: str, device: str, batch: Batch, layout: str, dtype: torch.dtype, normalize: bool
) -> None:
    features = stored(batch.features()[0].to(dtype), layout)
    prototypes = stored(batch.prototypes().to(dtype), layout)
    upstream = torch.randn(*features.shape[:-1], len(prototypes), generator=generator(batch.seed))

    def weighted_sum(scores: Tensor) -> Tensor:
        return (scores * upstream.to(scores)).sum()

    leaves = [stored(x.to(device), layout).requires_grad_() for x in (features, prototypes)]
    scores = sk.prototype_scores(*leaves, normalize=normalize, backend=backend)
    gradients = torch.autograd.grad(weighted_sum(scores), leaves)
    rows = features.double().requires_grad_()
    columns = prototypes.double().requires_grad_()
    unit = torch.nn.functional.normalize(rows, dim=-1) if normalize else rows
    wanted = unit @ columns.T
    in_double = torch.autograd.grad((wanted * upstream.to(dtype).double()).sum(), (rows, columns))
    eps = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    assert scores.dtype == dtype
    assert largest(scores.double().cpu() - wanted) <= 1e-6 + eps
    terms = (upstream.abs().sum(-1), upstream.abs().sum(0))  # times entries of at most 1
    for got, want, magnitude in zip(gradients, in_double, terms, strict=True):
        assert_near(got, want, 3e-6 + eps, largest(magnitude))


@pytest.mark.op("swapped_cross_entropy")
@shapes
@given(
    batch=any_batch, layout=layouts, codes_layout=layouts, row_sum=st.sampled_from([1.0, 0.0, 1.5])
)
def test_cross_entropies_of_any_shape(
    backend: str, device: str, batch: Batch, layout: str, codes_layout: str, row_sum: float
) -> None:
    scores = stored(batch.features() @ batch.prototypes().T, layout)
    shape = (len(batch.assign), *scores.shape[1:])
    codes = stored(random_codes(*shape, seed=batch.seed) * row_sum, codes_layout)
    tau, assign = batch.temperature, batch.assign
    on_device = stored(codes.to(device), codes_layout)
    loss, (gradient,) = value_and_gradients(
        lambda s: sk.swapped_cross_entropy(s, on_device, tau, assign=assign, backend=backend),
        stored(scores.to(device), layout),
    )
    student, (d_student,) = value_and_gradients(
        lambda s: sk.prototype_cross_entropy(s, on_device[0], tau, backend=backend),
        scores[0].to(device),
    )
    if batch.num_samples == 0:
        assert loss == student == 0
        return
    wanted, (d_scores,) = value_and_gradients(
        lambda s: swapped_cross_entropy(s, codes.double(), tau, assign), scores.double()
    )
    assert_loss_near(loss, wanted, tau)
    term = 2 / (tau * batch.num_crops * batch.num_samples)
    assert_near(gradient, d_scores, 2e-6, term)
    wanted, (d_scores,) = value_and_gradients(
        lambda s: -(codes[0].double() * torch.log_softmax(s / tau, -1)).sum(-1).mean(),
        scores[0].double(),
    )
    assert_loss_near(student, wanted, tau)
    assert_near(d_student, d_scores, 2e-6, 2 / (tau * batch.num_samples))


@shapes
@given(batch=any_batch, layout=layouts, hard=st.booleans())
def test_swav_loss_of_any_shape(
    backend: str, device: str, batch: Batch, layout: str, hard: bool
) -> None:
    features = stored(batch.features(), layout)
    prototypes = stored(batch.prototypes(), layout)
    queue = batch.queue()
    keywords = {"hard": hard, **batch.settings()}
    if hard:  # codes from here, as rounding may break a tie another way
        keywords["potentials"] = torch.randn(batch.num_prototypes, generator=generator(batch.seed))
        queue = None
    inputs = [stored(x.to(device), layout) for x in (features, prototypes)]
    on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in keywords.items()}
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(
            z, c, queue=None if queue is None else queue.to(device), backend=backend, **on_device
        ),
        *inputs,
    )
    if batch.num_samples == 0:
        assert loss == 0
        assert all(largest(gradient) == 0 for gradient in gradients)
        return
    in_double = {k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items()}
    wanted, wanted_gradients = value_and_gradients(
        lambda z, c: swav_loss(z, c, queue=None if queue is None else queue.double(), **in_double),
        features.double(),
        prototypes.double(),
    )
    assert_loss_near(loss, wanted, batch.temperature)
    # the largest gradient of a score, times one row or all
    one_row = 2 / (batch.temperature * batch.num_crops * batch.num_samples)
    # equal prototypes cancel to nothing in a sum over all of them, but for its rounding
    bound = 2e-6 + 1e-7 / batch.epsilon + 2.0**-23 * batch.num_prototypes**0.5
    for got, want, rows in zip(gradients, wanted_gradients, (1, batch.num_samples), strict=True):
        assert_near(got, want, bound, one_row * rows)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.op("sinkhorn")
@every_dtype
@numbers
@given(problem=problems(most=1e4))
def test_sinkhorn_of_any_numbers(
    backend: str, device: str, dtype: torch.dtype, problem: Problem
) -> None:
    scores = problem.scores(dtype)
    codes = sk.sinkhorn(scores.to(device), backend=backend, **problem.settings())
    f = sk.sinkhorn_potentials(scores.to(device), backend=backend, **problem.settings())
    assert codes.isfinite().all()
    assert codes.min() >= 0
    assert not f.isnan().any()
    assert torch.equal(f.isfinite().cpu(), (scores > -torch.inf).any(0))
    wanted = sinkhorn(scores.double(), problem.iterations, problem.epsilon)
    if dtype == torch.float64:
        size = largest(scores[scores.isfinite()])
        assert largest(codes.cpu() - wanted) <= 1e-12 + 2.0**-50 * size / problem.epsilon
        assert largest(codes.sum(-1) - 1) <= 1e-12
    else:
        assert_codes(codes, wanted, scores, problem.epsilon)


@pytest.mark.op("swapped_cross_entropy")
@every_dtype
@numbers
@given(problem=problems(most=1e4), temperature=st.sampled_from((0.1, 1.0)) | st.floats(0.03, 2.0))
def test_cross_entropy_of_any_numbers(
    backend: str, device: str, dtype: torch.dtype, problem: Problem, temperature: float
) -> None:
    rows = problem.scores(dtype)
    scores = torch.stack([rows, rows / 3, rows.roll(1, -1)])
    codes = random_codes(2, *rows.shape, seed=problem.seed).to(dtype)
    codes = codes.masked_fill((scores == -torch.inf).any(0), 0)
    loss, (gradient,) = value_and_gradients(
        lambda s: sk.swapped_cross_entropy(s, codes.to(device), temperature, backend=backend),
        scores.to(device),
    )
    wanted, (d_scores,) = value_and_gradients(
        lambda s: swapped_cross_entropy(s, codes.double(), temperature), scores.double()
    )
    unit, half = units(dtype)
    rounding = 4 * unit * problem.magnitude / temperature  # of s / temperature, as in the Sinkhorn
    allowed = rounding + 16 * unit * max(abs(wanted.item()), 1 / temperature)
    assert abs(loss.item() - wanted.item()) <= allowed
    term = 2 / (temperature * 3 * len(rows))  # of both pairs that a crop is in
    assert_near(gradient, d_scores, 32 * unit + rounding + half, term)


@every_dtype
@numbers
@given(
    batch=batches(), power=st.floats(-3, 4),
    temperature=st.sampled_from((0.1, 1.0)) | st.floats(0.03, 2.0), epsilon=epsilons(),
)  # fmt: skip
def test_swav_loss_of_any_numbers(
    backend: str, device: str, dtype: torch.dtype, batch: Batch, power: float,
    temperature: float, epsilon: float,
) -> None:  # fmt: skip
    """Features as long as 1e4 (100 in float16, whose gradients would else overflow)."""
    size = 10.0 ** (min(power, 2) if dtype == torch.float16 else power)
    inputs = [(batch.features() * size).to(dtype), batch.prototypes().to(dtype)]
    keywords = {**batch.settings(), "temperature": temperature, "epsilon": epsilon}
    loss, (d_z, d_c) = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, backend=backend, **keywords),
        *(x.to(device) for x in inputs),
    )
    wanted, (wanted_d_z, wanted_d_c) = value_and_gradients(
        lambda z, c: swav_loss(z, c, **keywords), *(x.double() for x in inputs)
    )
    unit, half = units(dtype)
    # products and s / epsilon round scores, and so the codes that are their targets
    codes_error = min(1.0, 32 * unit + 16 * unit * size / epsilon)
    rounding = codes_error + 16 * unit * size / temperature
    allowed = 16 * unit * max(abs(wanted.item()), 1 / temperature)
    assert abs(loss.item() - wanted.item()) <= allowed + 2 * size / temperature * rounding
    term = 2 / (temperature * batch.num_crops * batch.num_samples)
    assert_near(d_z, wanted_d_z, 32 * unit + rounding + half, term)
    assert_near(d_c, wanted_d_c, 32 * unit + rounding + half, term * batch.num_samples * size)
