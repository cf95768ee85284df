"""The promises about extreme, masked, poisoned and empty inputs, dtypes and memory."""

from collections.abc import Callable

import pytest
import torch
from compare import (
    HALF_DTYPES,
    ROW_SUM_BOUND,
    assert_codes,
    crops,
    largest,
    make_scores,
    random_codes,
    sinkhorn,
    strided_layouts,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk
from swav_kernels import dispatch

OPS = (
    "prototype_scores",
    "sinkhorn",
    "swapped_cross_entropy",
    "swav_loss",
    "prototype_distillation_loss",
)
on_sinkhorn = pytest.mark.op("sinkhorn")


def call(op: str, backend: str, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """One small call of an op."""
    features, prototypes = (x.to(device, dtype) for x in crops(3, 33, 16, 37))
    scores = (features @ prototypes.T).to(dtype)
    codes = random_codes(2, 33, 37).to(device, dtype)
    calls: dict[str, Callable[[], Tensor]] = {
        "prototype_scores": lambda: sk.prototype_scores(features, prototypes, backend=backend),
        "sinkhorn": lambda: sk.sinkhorn(scores[0], backend=backend),
        "swapped_cross_entropy": lambda: sk.swapped_cross_entropy(scores, codes, backend=backend),
        "swav_loss": lambda: sk.swav_loss(features, prototypes, backend=backend),
        "prototype_distillation_loss": lambda: sk.prototype_distillation_loss(
            features, prototypes, features[:2], prototypes, backend=backend
        ),
    }
    return calls[op]()


# --- how far the range reaches ----------------------------------------------------------------


@on_sinkhorn
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("magnitude", [1e2, 1e6, 1e12, 1e24, 1e36])
@pytest.mark.parametrize("epsilon", [1.0, 0.01, 1e-30])
def test_codes_are_finite_up_to_1e36(
    backend: str, device: str, iterations: int, magnitude: float, epsilon: float
) -> None:
    for kind in ("cosines", "one-hot", "prototype"):
        scores = make_scores(kind, 33, 37).double()
        scores = (scores / scores.abs().max() * magnitude * 0.999 * epsilon).float()
        codes = sk.sinkhorn(scores.to(device), iterations, epsilon, backend=backend)
        assert codes.isfinite().all()
        assert codes.min() >= 0
        assert largest(codes.double().sum(-1) - 1) <= ROW_SUM_BOUND
        if magnitude <= 1e6:
            wanted = sinkhorn(scores.double(), iterations, epsilon)
            assert_codes(codes, wanted, scores, epsilon)


@on_sinkhorn
def test_tiny_epsilon_with_tiny_scores(backend: str, device: str) -> None:
    scores = make_scores("cosines", 33, 37) * 1e-30
    codes = sk.sinkhorn(scores.to(device), epsilon=1e-30, backend=backend)
    assert_codes(codes, sinkhorn(scores.double(), epsilon=1e-30), scores, 1e-30)


@pytest.mark.float64
@on_sinkhorn
def test_float64_is_finite_up_to_1e300(backend: str, device: str) -> None:
    scores = make_scores("cosines", 33, 37).double()
    scores = scores / scores.abs().max() * 0.999e300
    for epsilon in (1.0, 1e-8):
        codes = sk.sinkhorn((scores * epsilon).to(device), epsilon=epsilon, backend=backend)
        assert codes.isfinite().all()
        assert largest(codes.sum(-1) - 1) <= 1e-12


# --- NaN, infinities, masks -------------------------------------------------------------------


@on_sinkhorn
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_nan_and_inf_poison_their_problem_and_no_other(
    backend: str, device: str, value: float, iterations: int
) -> None:
    for n, k, b, j in ((33, 37, 4, 36), (33, 37, 32, 0), (1, 3, 0, 1), (200, 5, 170, 2)):
        problems = torch.stack([make_scores("cosines", n, k)] * 3)
        problems[1, b, j] = value
        codes = sk.sinkhorn(problems.to(device), iterations, backend=backend)
        assert codes[1].isnan().all()
        alone = sk.sinkhorn(problems[:1].to(device), iterations, backend=backend)
        assert torch.equal(codes[0], alone[0])
        assert torch.equal(codes[2], alone[0])
        hard = sk.sinkhorn(problems.to(device), iterations, hard=True, backend=backend)
        assert hard[1].isnan().all()
        assert hard[::2].isfinite().all()
        if iterations:
            f = sk.sinkhorn_potentials(problems.to(device), iterations, backend=backend)
            assert f[1].isnan().all()
            assert f[::2].isfinite().all()


@on_sinkhorn
def test_nan_in_a_row_of_weight_zero_still_poisons(backend: str, device: str) -> None:
    scores = make_scores("cosines", 33, 37)
    scores[4, 5] = torch.nan
    weights = torch.ones(33)
    weights[4] = 0
    codes = sk.sinkhorn(scores.to(device), sample_weights=weights.to(device), backend=backend)
    assert codes.isnan().all()


@on_sinkhorn
def test_masked_scores_get_codes_of_zero(backend: str, device: str) -> None:
    scores = make_scores("masked", 33, 37)
    codes = sk.sinkhorn(scores.to(device), backend=backend).cpu()
    assert torch.equal(codes[scores == -torch.inf], torch.zeros_like(codes[scores == -torch.inf]))
    assert_codes(codes, sinkhorn(scores.double()), scores, 0.05)


@on_sinkhorn
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_prototype_without_samples_is_dead(backend: str, device: str, iterations: int) -> None:
    scores = make_scores("cosines", 33, 37)
    scores[:, [0, 7, 36]] = -torch.inf
    f = sk.sinkhorn_potentials(scores.to(device), iterations, backend=backend).cpu()
    assert (f[[0, 7, 36]] == -torch.inf).all()
    assert f.isfinite().sum() == 34
    codes = sk.sinkhorn(scores.to(device), iterations, backend=backend).cpu()
    assert (codes[:, [0, 7, 36]] == 0).all()
    alive = scores[0] > -torch.inf
    assert_codes(codes[:, alive], sinkhorn(scores[:, alive].double(), iterations), scores, 0.05)


@on_sinkhorn
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_prototype_of_weight_zero_is_off(backend: str, device: str, iterations: int) -> None:
    scores = make_scores("cosines", 33, 37)
    weights = torch.linspace(0.5, 2, 37)
    weights[[0, 7, 36]] = 0
    keywords = {"prototype_weights": weights.to(device), "backend": backend}
    f = sk.sinkhorn_potentials(scores.to(device), iterations, **keywords).cpu()
    assert (f[[0, 7, 36]] == -torch.inf).all()
    codes = sk.sinkhorn(scores.to(device), iterations, **keywords).cpu()
    assert (codes[:, [0, 7, 36]] == 0).all()
    on = weights > 0
    wanted = sinkhorn(scores[:, on].double(), iterations, prototype_weights=weights[on].double())
    assert_codes(codes[:, on], wanted, scores, 0.05)


@on_sinkhorn
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_row_without_prototypes_is_nan_and_the_others_are_not(
    backend: str, device: str, iterations: int
) -> None:
    scores = make_scores("cosines", 33, 37)
    scores[[0, 20, 32]] = -torch.inf
    kept = scores[:, 0] > -torch.inf
    for hard in (False, True):
        codes = sk.sinkhorn(scores.to(device), iterations, hard=hard, backend=backend).cpu()
        assert codes[~kept].isnan().all()
        wanted = sinkhorn(scores[kept].double(), iterations, hard=hard)
        assert_codes(codes[kept], wanted, scores, 0.05)


@on_sinkhorn
def test_check_finite_names_the_row(backend: str, device: str) -> None:
    scores = make_scores("masked", 33, 37).to(device)
    scores[3] = -torch.inf
    assert sk.sinkhorn(scores, check_finite=True, backend=backend).shape == (33, 37)
    for value in (torch.nan, torch.inf):
        bad = scores.clone()
        bad[20, 1] = value
        bad[30, 1] = value
        for op in (sk.sinkhorn, sk.sinkhorn_potentials):
            with pytest.raises(ValueError, match=rf"{op.__name__}: scores.*row 20\b"):
                op(bad, check_finite=True, backend=backend)
    problems = torch.stack([scores, bad])
    with pytest.raises(ValueError, match=r"problem 1, row 20\b"):
        sk.sinkhorn(problems, check_finite=True, backend=backend)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_features_poison_the_loss(backend: str, device: str, value: float) -> None:
    features, prototypes = (x.to(device) for x in crops(3, 33, 16, 37))
    for crop in (0, 2):  # an assign crop, and one that only predicts
        bad = features.clone()
        bad[crop, 4, 5] = value
        loss, gradients = value_and_gradients(
            lambda z, c: sk.swav_loss(z, c, backend=backend), bad, prototypes
        )
        assert loss.isnan()
        assert gradients[1].isnan().any()
    scores = (features @ prototypes.T).contiguous()
    scores[2, 4, 5] = value
    codes = random_codes(2, 33, 37).to(device)
    assert sk.swapped_cross_entropy(scores, codes, backend=backend).isnan()
    codes[1, 3, 4] = torch.nan
    scores[2, 4, 5] = 0
    assert sk.swapped_cross_entropy(scores, codes, backend=backend).isnan()


@on_sinkhorn
@pytest.mark.parametrize("hard", [False, True])
def test_a_masked_prototype_adds_nothing_without_iterations(
    backend: str, device: str, hard: bool
) -> None:
    scores = make_scores("cosines", 33, 37)
    scores[:, 5] = -torch.inf
    codes = sk.sinkhorn(scores.to(device), 0, hard=hard, backend=backend).cpu()
    kernel = torch.exp(scores.double() / 0.05)
    wanted = 33 * kernel / kernel.sum()
    if hard:
        wanted = torch.nn.functional.one_hot(wanted.argmax(1), 37)
    torch.testing.assert_close(codes, wanted.float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_normalising_hides_no_bad_row(backend: str, device: str, value: float) -> None:
    features, prototypes = (x.to(device) for x in crops(2, 33, 16, 37))
    features[1, 4, 5] = value
    scores = sk.prototype_scores(features, prototypes, normalize=True, backend=backend)
    assert scores[1, 4].isnan().all()
    assert scores[0].isfinite().all()
    assert sk.swav_loss(features, prototypes, normalize=True, backend=backend).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalising_takes_long_rows_and_zero_rows(
    backend: str, device: str, dtype: torch.dtype
) -> None:
    rows = 64 * unit_rows(5, 16, dtype=dtype).to(device)
    prototypes = unit_rows(7, 16, seed=1, dtype=dtype).to(device)
    rows[2] = 0
    wanted = sk.prototype_scores(rows, prototypes, normalize=True, backend=backend)
    assert (wanted[2] == 0).all()
    long = (rows * 2.0**80).requires_grad_()
    scores = sk.prototype_scores(long, prototypes, normalize=True, backend=backend)
    assert torch.equal(scores, wanted)
    scores.float().sum().backward()
    assert long.grad.isfinite().all()


# --- empty ------------------------------------------------------------------------------------


@on_sinkhorn
def test_no_samples(backend: str, device: str) -> None:
    for shape in ((0, 5), (2, 0, 5), (0, 4, 5)):
        scores = torch.empty(shape, device=device)
        for iterations in (0, 1, 3):
            assert sk.sinkhorn(scores, iterations, backend=backend).shape == shape
        f = sk.sinkhorn_potentials(scores, backend=backend)
        assert f.shape == (*shape[:-2], 5)


# --- dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_each_gradient_returns_in_the_dtype_of_its_input(
    backend: str, device: str, dtype: torch.dtype
) -> None:
    features, prototypes = (x.to(device) for x in crops(3, 33, 16, 37))
    for z, c in ((features.to(dtype), prototypes), (features, prototypes.to(dtype))):
        for op in (
            lambda z, c: sk.swav_loss(z, c, backend=backend),
            lambda z, c: sk.prototype_scores(z, c, backend=backend).square().mean(),
        ):
            loss, gradients = value_and_gradients(op, z, c)
            wanted, wanted_gradients = value_and_gradients(op, z.float(), c.float())
            assert loss.dtype == torch.float32
            assert abs(loss - wanted) <= 1e-5 * abs(wanted)
            for x, got, want in zip((z, c), gradients, wanted_gradients, strict=True):
                assert got.dtype == x.dtype
                bound = max(torch.finfo(x.dtype).eps, 1e-5) * largest(want)
                assert largest(got.float() - want) <= bound
    queue = unit_rows(2, 5, 16, dtype=dtype).to(device)
    assert sk.swav_loss(features, prototypes, queue=queue, backend=backend).dtype == torch.float32


@pytest.mark.float64
def test_float64_beside_float32_promotes(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(3, 33, 16, 37))
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, backend=backend), features.double(), prototypes
    )
    assert loss.dtype == torch.float64
    assert [gradient.dtype for gradient in gradients] == [torch.float64, torch.float32]
    scores = sk.prototype_scores(features, prototypes.double(), backend=backend)
    assert scores.dtype == torch.float64
    codes = random_codes(2, 33, 37).to(device)
    assert sk.swapped_cross_entropy(scores, codes, backend=backend).dtype == torch.float64


def test_a_half_gradient_is_rounded_after_the_loss_scale(backend: str, device: str) -> None:
    # gradients here lie far below float16's smallest number, and a loss scaler lifts them
    features, prototypes = (x.to(device, torch.float16) for x in crops(2, 513, 16, 37))
    _, (small,) = value_and_gradients(
        lambda z: sk.swav_loss(z, prototypes, temperature=100.0, backend=backend), features.float()
    )
    _, (scaled,) = value_and_gradients(
        lambda z: sk.swav_loss(z, prototypes, temperature=100.0, backend=backend) * 65536, features
    )
    assert largest(small) < 2e-5
    assert largest(scaled.float() - small * 65536) <= 1e-3 * largest(small * 65536)


@pytest.mark.parametrize("op", OPS)
def test_autocast_does_not_cost_digits(backend: str, device: str, op: str) -> None:
    plain = call(op, backend, device)
    with torch.autocast(device, torch.bfloat16):
        assert (
            torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
        ).dtype == torch.bfloat16
        # the inputs of the ops inside this region must be those outside it
        with torch.autocast(device, enabled=False):
            features, prototypes = (x.to(device) for x in crops(3, 33, 16, 37))
            scores = features @ prototypes.T
        codes = random_codes(2, 33, 37).to(device)
        inside = {
            "prototype_scores": lambda: sk.prototype_scores(features, prototypes, backend=backend),
            "sinkhorn": lambda: sk.sinkhorn(scores[0], backend=backend),
            "swapped_cross_entropy": lambda: sk.swapped_cross_entropy(
                scores, codes, backend=backend
            ),
            # by name, in another order
            "swav_loss": lambda: sk.swav_loss(
                epsilon=0.05, backend=backend, prototypes=prototypes, features=features
            ),
            "prototype_distillation_loss": lambda: sk.prototype_distillation_loss(
                epsilon=0.07,
                backend=backend,
                student_prototypes=prototypes,
                student_features=features,
                teacher_features=features[:2],
                teacher_prototypes=prototypes,
            ),
        }[op]()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def test_gradients_inside_autocast(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in crops(3, 33, 16, 37)]
    _, plain = value_and_gradients(lambda z, c: sk.swav_loss(z, c, backend=backend), *inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast(device, torch.bfloat16):
        loss = sk.swav_loss(*leaves, backend=backend)
        # the reference's backward pass is torch's own, and leaves the region as torch advises
        inside = torch.autograd.grad(loss, leaves) if backend != "reference" else None
    inside = inside or torch.autograd.grad(loss, leaves)
    assert all(map(torch.equal, plain, inside))


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_results_never_share_memory(backend: str, device: str, op: str) -> None:
    first = call(op, backend, device)
    kept = first.clone()
    second = call(op, backend, device)
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    second.zero_()
    assert torch.equal(first, kept)
    inputs = [x.to(device) for x in crops(2, 33, 16, 37)]
    _, one = value_and_gradients(lambda z, c: sk.swav_loss(z, c, backend=backend), *inputs)
    _, two = value_and_gradients(lambda z, c: sk.swav_loss(z, c, backend=backend), *inputs)
    pointers = {gradient.untyped_storage().data_ptr() for gradient in (*one, *two)}
    assert len(pointers) == 4


@on_sinkhorn
def test_inputs_are_left_alone(backend: str, device: str) -> None:
    scores = make_scores("cosines", 33, 37).to(device)
    kept = scores.clone()
    sk.sinkhorn(scores, backend=backend).zero_()
    sk.sinkhorn_potentials(scores, backend=backend).zero_()
    assert torch.equal(scores, kept)


@on_sinkhorn
def test_strided_scores(backend: str, device: str) -> None:
    for scores in (make_scores("cosines", 33, 36), make_scores("cosines", 32, 37).view(2, 16, 37)):
        for name, layout in strided_layouts(scores.to(device)):
            plain = sk.sinkhorn(layout.contiguous(), backend=backend)
            assert torch.equal(sk.sinkhorn(layout, backend=backend), plain), name


@on_sinkhorn
def test_the_table_of_backends_is_the_one_tested(backend: str) -> None:
    assert backend in sk.available_backends()
    assert dispatch.why_not(backend, "sinkhorn") is None
