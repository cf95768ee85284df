"""Interpreted kernels over many small tiles: right, whatever order their programs run in.

tests/interpreter.py runs every launch of the interpreted run in both orders, from memory that is
NaN; here small blocks make at least 3 programs on each axis, with edges that no block divides.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compare import (
    HALF_DTYPES,
    assert_codes,
    assert_gradient,
    assert_loss,
    assert_no_worse_than_eager,
    crops,
    generator,
    largest,
    make_scores,
    random_codes,
    sinkhorn,
    sinkhorn_log_u,
    swapped_cross_entropy,
    swav_codes,
    swav_loss,
    swav_stats,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.interpreted
Grids = dict[str, list[tuple[int, ...]]]
DTYPES = (torch.float32, *HALF_DTYPES)
# 3 blocks of samples, of prototypes and of dimensions, none of them full at the end
N, K, DIM, CROPS = 34, 35, 37, 4
ASSIGN = (2, 0, 3)
STEP_D = 64  # all dimensions in one step of a product, for speed
MANY = 64  # programs that a launch should have: splits as far as there are blocks


SWEEPS = {"_column_stats_kernel", "_sweep_kernel"}
STREAMING = {"_column_stats_kernel", "_row_sums_kernel", "_column_sums_kernel"}
STEPS = {"_potentials_kernel", "_spread_nan_kernel", "_codes_kernel"}
OWN_KERNELS = {
    "folded": SWEEPS,
    "whole rows": {*SWEEPS, *STEPS},
    "streamed rows": {*STREAMING, *STEPS},
    "over a group": {"_combine_stats_kernel", "_sum_partials_kernel"},
    "swapped_cross_entropy": {"_swapped_kernel", "_sum_partials_kernel"},
    "prototype_scores": {"_product_kernel", "_sum_partials_kernel"},
    "stored loss": {
        *STREAMING, "_potentials_kernel", "_half_rows_kernel", "_product_kernel",
        "_stored_loss_kernel", "_sum_partials_kernel",
    },
    "swav_loss": {
        *STREAMING, "_potentials_kernel", "_crop_loss_kernel", "_d_prototypes_kernel",
        "_code_statistics_kernel", "_sum_partials_kernel",
    },
    "prototype_distillation_loss": {
        "_row_sums_kernel", "_crop_loss_kernel", "_d_prototypes_kernel", "_sum_partials_kernel",
    },
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grids]:
    """Blocks of 16 in all kernels; the grids of the launches, checked when the test is over."""
    from interpreter import launched_grids

    from swav_kernels.triton_kernels import (
        code_statistics,
        half_scores,
        potentials,
        prototype_distillation_loss,
        prototype_scores,
        reduce,
        sinkhorn,
        stored_loss,
        swapped_cross_entropy,
        swav_loss,
        whole_rows,
    )
    from swav_kernels.triton_kernels.launch import Tiles
    from swav_kernels.triton_kernels.product_tiles import ProductTiles

    def small(*_: object) -> Tiles:
        return Tiles(16, 16, 16, step_d=STEP_D, fill=MANY)

    for module in (swav_loss, prototype_distillation_loss):
        monkeypatch.setattr(module, "tiles", lambda *_: ProductTiles(*4 * (small(),)))
    for module in (prototype_scores, swapped_cross_entropy):
        monkeypatch.setattr(module, "tiles", small)
    monkeypatch.setattr(sinkhorn, "column_tiles", small)
    for module in (sinkhorn, whole_rows):
        monkeypatch.setattr(module, "row_tiles", small)
    monkeypatch.setattr(stored_loss, "tiles", lambda *_: Tiles(16, 64))
    for module, name in (
        (code_statistics, "BLOCK_ROWS"),
        (half_scores, "BLOCK_ROWS"),
        (half_scores, "MOST_COLUMNS"),
        (potentials, "BLOCK_COLUMNS"),
        (potentials, "NAN_BLOCK"),
    ):
        monkeypatch.setattr(module, name, 16)
    for module in (potentials, reduce):
        monkeypatch.setattr(module, "BLOCK_PARTIALS", 2)
    monkeypatch.setattr(reduce, "BLOCK_SCALAR_PARTIALS", 2)
    launched_grids.clear()
    yield launched_grids
    for name, grids in launched_grids.items():
        if name == "_sum_partials_kernel" and set(grids) == {(1,)}:
            continue  # the sum is a scalar
        assert any(min(grid) >= 3 for grid in grids), (name, grids)


@pytest.fixture(params=["folded", "whole rows", "streamed rows"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, launched: Grids) -> str:
    """Whether a row of scores fits in one block, and whether sweeps take the step before them."""
    from swav_kernels.triton_kernels import sinkhorn, swapped_cross_entropy, whole_rows
    from swav_kernels.triton_kernels.launch import Tiles

    if request.param != "folded":
        monkeypatch.setattr(whole_rows, "MOST_FOLDED", 0)
    if request.param != "streamed rows":
        for module, name in (
            (sinkhorn, "row_tiles"), (whole_rows, "row_tiles"), (swapped_cross_entropy, "tiles"),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, lambda *_: Tiles(16, 64, fill=MANY))
    return request.param


def problems(*kinds: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores [A, N, K]."""
    return torch.stack([make_scores(kind, N, K) for kind in kinds]).to(dtype)


# hard codes of half scores would hang on ties
@pytest.mark.parametrize(
    ("dtype", "hard"), [(torch.float32, True), *((dtype, False) for dtype in DTYPES)]
)
def test_sinkhorn(launched: Grids, rows: str, dtype: torch.dtype, hard: bool) -> None:
    scores = problems("cosines", "masked", "shifted", dtype=dtype)
    for iterations in (1, 3):
        codes = sk.sinkhorn(scores, iterations, hard=hard, backend="triton")
        for got, s in zip(codes, scores, strict=True):
            assert_codes(got, sinkhorn(s.double(), iterations, hard=hard), s, 0.05)
    steps = STEPS if hard and rows == "folded" else set()  # hard codes take the potentials
    assert set(launched) == OWN_KERNELS[rows] | steps


@pytest.mark.usefixtures("rows")
def test_sinkhorn_with_weights_and_in_place() -> None:
    scores = problems("cosines", "masked", "one-hot")
    r = torch.rand(K, generator=generator(1)) + 0.1
    w = torch.rand(3, N, generator=generator(2))
    w[:, 7] = 0
    wanted = [
        sinkhorn(s.double(), prototype_weights=r.double(), sample_weights=w[a].double())
        for a, s in enumerate(scores)
    ]
    kept = scores.clone()
    sk.sinkhorn(scores, prototype_weights=r, sample_weights=w, out=scores, backend="triton")
    for got, s, want in zip(scores, kept, wanted, strict=True):
        assert_codes(got, want, s, 0.05)


def test_exponentials_kept_in_half_the_bytes(rows: str) -> None:
    scores = problems("cosines", "masked", "shifted")
    scores[0, 5] = -torch.inf
    kept = torch.arange(N) != 5
    for iterations in (3, 4, 6):
        f = sk.sinkhorn_potentials(scores, iterations, precision="bfloat16", backend="triton")
        exact = sk.sinkhorn_potentials(scores, iterations, backend="triton")
        assert torch.equal(f, exact) == (iterations == 3 or rows == "streamed rows")
        for potentials, s in zip(f, (scores[0, kept], *scores[1:]), strict=True):
            codes = torch.softmax(s.double() / 0.05 + potentials.double(), -1)
            wanted = sinkhorn(s.double(), iterations)
            # as on the cpu: every number that is kept may be off by 2^-9
            assert ((codes - wanted).abs() <= 0.008 * wanted + 1e-6).all()
    halves = scores.bfloat16()
    f = sk.sinkhorn_potentials(halves, 4, precision="bfloat16", backend="triton")
    assert torch.equal(f, sk.sinkhorn_potentials(halves, 4, backend="triton"))


@pytest.mark.usefixtures("rows")
def test_exponentials_are_not_kept_beyond_their_range() -> None:
    # all samples but one know prototype 0 alone, so its potential falls by 10 bits an iteration
    scores = torch.full((3, N, K), -torch.inf)
    scores[:, :, 0] = scores[:, -1] = 0
    f = sk.sinkhorn_potentials(scores, 20, precision="bfloat16", backend="triton").double()
    wanted = sinkhorn_log_u(scores[0].double(), 20)
    assert (wanted[1] - wanted[0]) / math.log(2) > 150
    for got in f:
        assert largest(got - got[1] - (wanted - wanted[1])) <= 0.02


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_kept_exponentials_spread_nan_over_one_problem(value: float) -> None:
    scores = problems("cosines", "cosines", "cosines")
    clean = sk.sinkhorn_potentials(scores, 5, precision="bfloat16", backend="triton")
    scores[1, -1, -1] = value
    f = sk.sinkhorn_potentials(scores, 5, precision="bfloat16", backend="triton")
    assert f[1].isnan().all()
    assert torch.equal(f[::2], clean[::2])


def test_sweeps_with_sums_over_a_group_between_them(launched: Grids, rows: str) -> None:
    from swav_kernels.ops.iteration import solve
    from swav_kernels.triton_kernels import sinkhorn as kernels

    scores = problems("cosines", "masked", "shifted")
    f = solve(
        lambda: kernels.column_stats(scores, None, 0.05),
        lambda f: kernels.column_sums(scores, f, None, 0.05),
        3, None, None, None,
    )  # fmt: skip
    for potentials, s in zip(f, scores, strict=True):
        codes = torch.softmax(s.double() / 0.05 + potentials.double(), -1)
        assert_codes(codes, sinkhorn(s.double()), s, 0.05)
    assert set(launched) == OWN_KERNELS[rows] - STEPS | OWN_KERNELS["over a group"]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_sinkhorn_spreads_nan_over_one_problem(iterations: int) -> None:
    scores = problems("cosines", "cosines", "cosines")
    clean = sk.sinkhorn(scores, iterations, backend="triton")
    scores[1, -1, -1] = torch.nan
    codes = sk.sinkhorn(scores, iterations, backend="triton")
    assert codes[1].isnan().all()
    assert torch.equal(codes[::2], clean[::2])
    if iterations:
        f = sk.sinkhorn_potentials(scores, iterations, backend="triton")
        assert f[1].isnan().all()
        assert f[::2].isfinite().all()


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("dtype", DTYPES)
def test_swapped_cross_entropy(launched: Grids, dtype: torch.dtype) -> None:
    scores = (unit_rows(CROPS, N, 16) @ unit_rows(K, 16, seed=7).T).to(dtype)
    codes = random_codes(len(ASSIGN), N, K)
    codes[:, ::3] *= 0.5
    loss, (gradient,) = value_and_gradients(
        lambda s: sk.swapped_cross_entropy(s, codes, assign=ASSIGN, backend="triton"), scores
    )
    wanted, (wanted_gradient,) = value_and_gradients(
        lambda s: swapped_cross_entropy(s, codes.double(), 0.1, ASSIGN), scores.double()
    )
    assert_loss(loss, wanted)
    rounding = torch.finfo(dtype).eps * largest(wanted_gradient)
    assert largest(gradient.double() - wanted_gradient) <= max(
        rounding, 4e-6 * largest(wanted_gradient)
    )
    assert set(launched) == OWN_KERNELS["swapped_cross_entropy"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_prototype_scores(launched: Grids, dtype: torch.dtype) -> None:
    features, prototypes = unit_rows(N, DIM, seed=1, dtype=dtype), unit_rows(K, DIM, dtype=dtype)
    weights = torch.sin(torch.arange(N * K).double()).view(N, K)
    arguments = (
        lambda z, c: (sk.prototype_scores(z, c, backend="triton").float() * weights.float()).sum(),
        lambda z, c: ((z @ c.T).to(weights if z.dtype == torch.float64 else torch.float32)
                      * weights.to(torch.promote_types(z.dtype, torch.float32))).sum(),
    )  # fmt: skip
    if dtype != torch.float32:
        assert_no_worse_than_eager(*arguments, features, prototypes)
    else:
        _, gradients = value_and_gradients(arguments[0], features, prototypes)
        _, wanted = value_and_gradients(arguments[1], features.double(), prototypes.double())
        for got, want in zip(gradients, wanted, strict=True):
            assert_gradient(got, want)
    assert set(launched) == OWN_KERNELS["prototype_scores"]


@pytest.mark.parametrize(("hard", "step_d"), [(False, 16), (True, 64)])
def test_swav_loss_and_its_stats(
    launched: Grids, monkeypatch: pytest.MonkeyPatch, hard: bool, step_d: int
) -> None:
    monkeypatch.setitem(globals(), "STEP_D", step_d)
    features, prototypes = crops(CROPS, N, DIM, K)
    queue = unit_rows(len(ASSIGN), 20, DIM, seed=5, dtype=torch.float32)
    keywords: dict[str, Any] = {"assign": ASSIGN, "hard": hard}
    stats = {}

    def run(z: Tensor, c: Tensor) -> Tensor:
        loss, seen = sk.swav_loss(
            z, c, queue=queue, return_stats=True, backend="triton", **keywords
        )
        stats.update(seen)
        return loss

    loss, gradients = value_and_gradients(run, features, prototypes)
    z, c = features.double(), prototypes.double()
    wanted, wanted_gradients = value_and_gradients(
        lambda z, c: swav_loss(z, c, queue=queue.double(), **keywords), z, c
    )
    assert_loss(loss, wanted)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert_gradient(got, want)
    codes = swav_codes(z @ c.T, ASSIGN, queue_scores=queue.double() @ c.T, hard=hard)
    for name, want in swav_stats(z @ c.T, codes, wanted, ASSIGN).items():
        assert stats[name].item() == pytest.approx(want, abs=1e-5), name
    assert set(launched) == OWN_KERNELS["swav_loss"]
    assert max(launched["_sum_partials_kernel"]) >= (3,)


@pytest.mark.parametrize("step_d", [16, 64])
def test_prototype_distillation_loss(
    launched: Grids, monkeypatch: pytest.MonkeyPatch, step_d: int
) -> None:
    """Of crops, and over a teacher of fewer and of more dimensions than the student has."""
    monkeypatch.setitem(globals(), "STEP_D", step_d)
    weights = torch.linspace(0, 2, N)
    f = torch.randn(3, K, generator=generator(6))  # its Sinkhorn is that of swav_potentials
    for dim, teacher_dim in ((DIM, 21), (21, DIM)):
        z, c = crops(CROPS, N, dim, K)
        t, e = crops(3, N, teacher_dim, K, seed=5)

        def run(z: Tensor, c: Tensor, backend: str, t: Tensor = t, e: Tensor = e) -> Tensor:
            return sk.prototype_distillation_loss(
                z, c, t, e, potentials=f.to(z.dtype), weights=weights, backend=backend
            )

        loss, gradients = value_and_gradients(lambda z, c, f=run: f(z, c, "triton"), z, c)
        wanted, wanted_gradients = value_and_gradients(
            lambda z, c, f=run: f(z, c, "reference"), z.double(), c.double()
        )
        assert_loss(loss, wanted)
        for got, want in zip(gradients, wanted_gradients, strict=True):
            assert_gradient(got, want)
    assert set(launched) == OWN_KERNELS["prototype_distillation_loss"]


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_swav_loss_of_half_inputs(dtype: torch.dtype) -> None:
    features, prototypes = (x.to(dtype) for x in crops(CROPS, N, DIM, K))
    assert_no_worse_than_eager(
        lambda z, c: sk.swav_loss(z, c, assign=ASSIGN, backend="triton"),
        lambda z, c: swav_loss(z, c, assign=ASSIGN),
        features,
        prototypes,
    )


@pytest.mark.parametrize("is_stored", [False, True])
def test_swav_loss_in_bfloat16_products(
    launched: Grids, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    from swav_kernels.triton_kernels import stored_loss

    monkeypatch.setattr(stored_loss, "LEAST_BYTES", 0 if is_stored else math.inf)
    inputs = crops(CROPS, N, DIM, K)
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, precision="bfloat16", assign=ASSIGN, backend="triton"),
        *inputs,
    )
    wanted, wanted_gradients = value_and_gradients(
        lambda z, c: swav_loss(z, c, assign=ASSIGN), *(x.double() for x in inputs)
    )
    assert 0 < abs(loss - wanted) <= 1e-2 * wanted
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert 0 < largest(got - want) <= 2e-2 * largest(want)
    kernels = OWN_KERNELS["stored loss" if is_stored else "swav_loss"]
    assert set(launched) == kernels - {"_code_statistics_kernel"}


@pytest.mark.usefixtures("launched")
def test_swav_potentials_with_sample_weights() -> None:
    features, prototypes = crops(3, N, DIM, K)
    w = torch.rand(3, N, generator=generator(2))
    w[:, 7] = 0
    f = sk.swav_potentials(features, prototypes, sample_weights=w, backend="triton")
    for a in range(3):
        scores = features[a].double() @ prototypes.double().T
        codes = torch.softmax(scores / 0.05 + f[a].double(), -1)
        assert_codes(codes, sinkhorn(scores, sample_weights=w[a].double()), scores, 0.05)


def test_every_kernel_of_the_package_is_covered_here() -> None:
    from kernel_list import KERNELS

    assert set.union(*OWN_KERNELS.values()) == KERNELS


# --- the check is awake -----------------------------------------------------------------------


def test_a_race_is_caught() -> None:
    import toy_kernels
    from interpreter import OrderError

    data = torch.arange(4.0)
    toy_kernels.each_program_its_own[(4,)](in_ptr=data, out_ptr=torch.empty(4))
    with pytest.raises(OrderError, match=r"reads_its_neighbour.*\(4,\)"):
        toy_kernels.reads_its_neighbour[(4,)](out_ptr=data)
    with pytest.raises(OrderError):
        toy_kernels.all_write_the_same_place[(4,)](out_ptr=torch.zeros(1))


def test_what_no_program_writes_is_nan() -> None:
    assert torch.empty(3, 5).isnan().all()


def test_bfloat16_is_rounded_to_even_and_multiplied_as_numbers() -> None:
    import toy_kernels

    a = torch.randn(16, 16, generator=generator(1)) * torch.logspace(-30, 30, 16)
    a[0, :5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1 + 2**-8])
    rounded = torch.empty(16, 16, dtype=torch.bfloat16)
    toy_kernels.copy[(1,)](in_ptr=a, out_ptr=rounded)
    assert torch.equal(rounded.nan_to_num(nan=7), a.bfloat16().nan_to_num(nan=7))
    x, y = (torch.randn(16, 16, generator=generator(s)).bfloat16() for s in (2, 3))
    product = torch.empty(16, 16)
    toy_kernels.dot[(1,)](a_ptr=x, b_ptr=y, out_ptr=product)
    torch.testing.assert_close(product, x.float() @ y.float(), rtol=0, atol=1e-5)


def test_the_last_run_is_the_reversed_one() -> None:
    import toy_kernels
    from interpreter import OrderError

    counter, when = torch.zeros(1, dtype=torch.int64), torch.empty(3, dtype=torch.int64)
    with pytest.raises(OrderError):
        toy_kernels.counts_up[(3,)](counter_ptr=counter, out_ptr=when)
    assert when.tolist() == [2, 1, 0]
