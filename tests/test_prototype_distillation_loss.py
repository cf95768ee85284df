"""`prototype_distillation_loss` against float64: the teacher's codes, then pair by pair."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from compare import (
    HALF_DTYPES,
    assert_gradient,
    assert_loss,
    assert_no_worse_than_eager,
    generator,
    largest,
    sinkhorn_log_u,
    strided_layouts,
    unit_rows,
    value_and_gradients,
)
from gloo import run_ranks
from torch import Tensor

import swav_kernels as sk

OP = "prototype_distillation_loss"
pytestmark = pytest.mark.op(OP)
# (N, D, E, K): one of each, less than a vector, around a tile, several tiles; D and E differ
ROWS = [
    (1, 1, 2, 1),
    (1, 16, 7, 37),
    (33, 16, 24, 1),
    (7, 5, 3, 130),
    (65, 33, 128, 64),
    (130, 128, 17, 301),
]
# (S, T, B, D, E, K): one teacher crop, all of them, DINO's many, an odd number of crops
CROPS = [(2, 1, 9, 16, 7, 37), (2, 2, 33, 5, 16, 3), (5, 2, 17, 16, 33, 70), (3, 3, 1, 8, 8, 130)]


def rows_of(n: int, dim: int, teacher_dim: int, k: int) -> tuple[Tensor, ...]:
    """Float32 features and prototypes of a student [N, D], [K, D] and a teacher [N, E], [K, E]."""
    shapes = ((n, dim), (k, dim), (n, teacher_dim), (k, teacher_dim))
    sides = [unit_rows(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if dim == 1:  # unit rows would be +-1, whose gradients cancel
        sides[0] = sides[0] * torch.linspace(0.2, 1, n).double().unsqueeze(1)
    return tuple(x.float() for x in sides)


def crops_of(s: int, t: int, b: int, dim: int, teacher_dim: int, k: int) -> tuple[Tensor, ...]:
    """The same of crops [S, B, D] and [T, B, E]."""
    student, c, teacher, e = rows_of(max(s, t) * b, dim, teacher_dim, k)
    views = max(s, t)
    return student.view(views, b, dim)[:s], c, teacher.view(views, b, teacher_dim)[:t], e


def oracle(
    student: Tensor, c: Tensor, teacher: Tensor, e: Tensor, *, temperature: float = 0.1,
    epsilon: float = 0.07, iterations: int = 3, potentials: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One pair of crops after the other, in the dtype of the student."""
    is_rows = student.dim() == 2
    if is_rows:
        student, teacher = student.unsqueeze(0), teacher.unsqueeze(0)
    t = (teacher @ e.T).detach()
    if potentials is None:
        potentials = sinkhorn_log_u(t.flatten(0, 1), iterations, epsilon)
    codes = torch.softmax(t / epsilon + potentials.to(t).expand(len(t), -1).unsqueeze(1), -1)
    terms = []
    for i, z in enumerate(student):
        log_p = torch.log_softmax(z @ c.T / temperature, -1)
        for j, q in enumerate(codes):
            if is_rows or i != j:
                row = -torch.where(q == 0, 0, q * log_p).sum(-1)
                terms.append((row if weights is None else weights.to(row) * row).mean())
    return sum(terms, start=student.new_zeros(())) / len(terms)


def check(
    inputs: tuple[Tensor, ...], backend: str, device: str, **keywords: Any
) -> tuple[Tensor, ...]:
    """Hold value and both gradients to the bounds; return the gradients."""
    on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in keywords.items()}
    in_double = {k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items()}
    t, e = (x.to(device) for x in inputs[2:])
    loss, gradients = value_and_gradients(
        lambda z, c: sk.prototype_distillation_loss(z, c, t, e, backend=backend, **on_device),
        *(x.to(device) for x in inputs[:2]),
    )
    wanted, wanted_gradients = value_and_gradients(
        lambda z, c: oracle(z, c, *(x.double() for x in inputs[2:]), **in_double),
        *(x.double() for x in inputs[:2]),
    )
    assert loss.dtype == torch.float32
    assert_loss(loss, wanted, keywords.get("temperature", 0.1))
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert got.dtype == torch.float32
        if len(inputs[1]) == 1:  # p = q = 1, but for the rounding of two scores
            assert largest(want) <= 1e-15
            assert largest(got) <= 2e-6 / keywords.get("temperature", 0.1)
        else:
            assert_gradient(got, want, keywords.get("epsilon", 0.07))
    return gradients


def ragged(n: int) -> Tensor:
    """Weights of masked patches: images of 1, 2, 3, ... patches, each with a weight of 1."""
    sizes = [size for i in range(1, n + 1) for size in [i] * i][:n]
    return n / len(set(sizes)) / torch.tensor(sizes).float()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows(shape: tuple[int, ...], weighted: bool, backend: str, device: str) -> None:
    check(rows_of(*shape), backend, device, weights=ragged(shape[0]) if weighted else None)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", CROPS, ids=str)
def test_crops(shape: tuple[int, ...], weighted: bool, backend: str, device: str) -> None:
    weights = torch.linspace(0, 2, shape[2]) if weighted else None
    check(crops_of(*shape), backend, device, weights=weights)


@pytest.mark.heavy
def test_large_shapes(backend: str, device: str) -> None:
    check(rows_of(513, 64, 96, 3000), backend, device, weights=ragged(513))
    check(crops_of(8, 2, 70, 128, 96, 1000), backend, device)


@pytest.mark.parametrize(
    ("epsilon", "temperature", "iterations"),
    [(0.005, 0.1, 3), (0.03, 0.07, 1), (0.04, 0.1, 10), (0.5, 1.0, 2)],
)
def test_settings(
    epsilon: float, temperature: float, iterations: int, backend: str, device: str
) -> None:
    check(
        rows_of(33, 16, 24, 37), backend, device,
        epsilon=epsilon, temperature=temperature, iterations=iterations,
    )  # fmt: skip


def test_defaults(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in rows_of(33, 16, 24, 37)]
    explicit = sk.prototype_distillation_loss(
        *inputs, temperature=0.1, epsilon=0.07, iterations=3, potentials=None, weights=None,
        group=None, precision="float32", backend=backend,
    )  # fmt: skip
    assert torch.equal(sk.prototype_distillation_loss(*inputs, backend=backend), explicit)


def test_potentials_are_a_centre_a_plain_softmax_or_those_of_each_crop(
    backend: str, device: str
) -> None:
    rows, crops = rows_of(33, 16, 24, 37), crops_of(3, 2, 17, 16, 24, 37)
    centre = torch.randn(37, generator=generator(4)) / 10
    check(rows, backend, device, potentials=-centre / 0.07)
    check(crops, backend, device, potentials=-centre / 0.07)
    check(rows, backend, device, potentials=torch.zeros(37))
    f = torch.randn(2, 37, generator=generator(5))
    f[1, 3] = -torch.inf  # a dead prototype
    check(crops, backend, device, potentials=f)


def test_own_potentials_are_those_of_swav_potentials(backend: str, device: str) -> None:
    """Of all the teacher's rows together, up to a constant."""
    z, c, t, e = (x.to(device) for x in crops_of(3, 2, 17, 16, 24, 37))
    f = sk.swav_potentials(t.reshape(1, -1, 24), e, epsilon=0.07, backend=backend)
    loss = sk.prototype_distillation_loss(z, c, t, e, backend=backend)
    for given in (f, f[0], f[0] + 3):
        got = sk.prototype_distillation_loss(
            z, c, t, e, potentials=given.expand(2, -1) if given.dim() == 2 else given,
            backend=backend,
        )  # fmt: skip
        assert_loss(got.cpu(), loss.double().cpu())


def test_a_term_for_each_prototype_in_the_teachers_scores_changes_nothing(
    backend: str, device: str
) -> None:
    """The gauge of the Sinkhorn: a further dimension adds an offset to every prototype's scores."""
    z, c, t, e = rows_of(33, 16, 24, 37)
    offset = torch.linspace(-1, 1, 37).unsqueeze(1)
    shifted = (z, c, torch.cat([t, torch.ones(33, 1)], 1), torch.cat([e, offset], 1))
    gradients = check(shifted, backend, device)
    for got, want in zip(gradients, check((z, c, t, e), backend, device), strict=True):
        assert largest(got - want) <= 2e-5 * largest(want)


def test_a_network_that_predicts_its_own_codes(backend: str, device: str) -> None:
    """With one set of features and prototypes and all crops coded it is `swav_loss`."""
    z, c, *_ = (x.to(device) for x in crops_of(3, 2, 17, 16, 16, 37))
    f = sk.swav_potentials(z[:2], c, epsilon=0.07, backend=backend)
    for precision in ("float32", "bfloat16"):
        keywords: dict[str, Any] = {"epsilon": 0.07, "precision": precision, "backend": backend}
        got = value_and_gradients(
            lambda z, c, k=keywords: sk.prototype_distillation_loss(
                z, c, z[:2], c, potentials=f, **k
            ),
            z, c,
        )  # fmt: skip
        want = value_and_gradients(
            lambda z, c, k=keywords: sk.swav_loss(z, c, potentials=f, **k), z, c
        )
        loose = 1e-6 if precision == "float32" else 1e-2
        assert abs(got[0] - want[0]) <= loose * abs(want[0])
        for x, y in zip(got[1], want[1], strict=True):
            assert largest(x - y) <= 4 * loose * largest(y)


def test_a_row_of_weight_0_is_no_row(backend: str, device: str) -> None:
    """But for the Sinkhorn, in which it counts: so of given potentials."""
    z, c, t, e = (x.to(device) for x in rows_of(9, 16, 7, 37))
    f = torch.zeros(37, device=device)
    weights = torch.tensor([1.0] * 4 + [0.0] * 5, device=device)

    def loss(z: Tensor, t: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Any]:
        return value_and_gradients(
            lambda z, c: sk.prototype_distillation_loss(
                z, c, t, e, potentials=f, weights=weights, backend=backend
            ),
            z, c,
        )  # fmt: skip

    part, (d_features, d_prototypes) = loss(z, t, weights)
    alone, (d_features_alone, d_prototypes_alone) = loss(z[:4], t[:4])
    assert_loss(part.cpu(), alone.double().cpu() * 4 / 9)
    assert (d_features[4:] == 0).all()
    assert_gradient(d_features[:4], d_features_alone.double().cpu() * 4 / 9)
    assert_gradient(d_prototypes, d_prototypes_alone.double().cpu() * 4 / 9)


def test_bfloat16_precision_is_near_and_not_the_same(backend: str, device: str) -> None:
    z, c, t, e = (x.to(device) for x in rows_of(65, 64, 40, 130))
    results = [
        value_and_gradients(
            lambda z, c, p=precision: sk.prototype_distillation_loss(
                z, c, t, e, precision=p, backend=backend
            ),
            z, c,
        )
        for precision in ("bfloat16", "float32")
    ]  # fmt: skip
    (loss, gradients), (exact, exact_gradients) = results
    assert 0 < abs(loss - exact) <= 2e-2 * exact
    for got, want in zip(gradients, exact_gradients, strict=True):
        assert got.dtype == torch.float32
        assert 0 < largest(got - want) <= 2e-2 * largest(want)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_inputs_are_no_worse_than_eager(dtype: torch.dtype, backend: str, device: str) -> None:
    z, c, t, e = (x.to(dtype).to(device) for x in rows_of(33, 16, 24, 37))
    f = (torch.randn(37, generator=generator(4)) / 10).to(dtype)

    def eager(z: Tensor, c: Tensor) -> Tensor:
        return oracle(z, c, t.cpu().to(z), e.cpu().to(z), potentials=f)

    assert_no_worse_than_eager(
        lambda z, c: sk.prototype_distillation_loss(
            z, c, t, e, potentials=f.float().to(device), backend=backend
        ),
        eager, z, c,
    )  # fmt: skip


def test_student_and_teacher_of_different_dtypes(backend: str, device: str) -> None:
    """They promote together, and each gradient returns in its own input's."""
    z, c, t, e = rows_of(33, 16, 24, 37)
    z, t = z.bfloat16(), t.half()
    leaves = [x.to(device).requires_grad_() for x in (z, c)]
    loss = sk.prototype_distillation_loss(*leaves, t.to(device), e.to(device), backend=backend)
    gradients = torch.autograd.grad(loss, leaves)
    wanted = oracle(*(x.double() for x in (z, c, t, e)))
    assert_loss(loss.detach(), wanted)
    assert [x.dtype for x in gradients] == [torch.bfloat16, torch.float32]


@pytest.mark.float64
def test_float64_and_gradcheck(backend: str, device: str) -> None:
    crops = [x.double().to(device) for x in crops_of(3, 2, 4, 5, 3, 6)]
    rows = [x.double().to(device) for x in rows_of(4, 5, 3, 6)]
    for z, c, t, e in (crops, rows):
        weights = torch.linspace(0.5, 2, 4).double().to(device)
        leaves = [x.clone().requires_grad_() for x in (z, c)]

        def loss(z: Tensor, c: Tensor, t: Tensor = t, e: Tensor = e, w: Tensor = weights) -> Tensor:
            return sk.prototype_distillation_loss(
                z, c, t, e, temperature=0.5, weights=w, backend=backend
            )

        value = loss(*leaves)
        wanted = oracle(*(x.cpu() for x in (z, c, t, e)), temperature=0.5, weights=weights.cpu())
        assert value.dtype == torch.float64
        assert abs(value.item() - wanted.item()) <= 1e-13 * wanted.item()
        assert torch.autograd.gradcheck(loss, leaves)


def test_the_teacher_carries_no_gradient(backend: str, device: str) -> None:
    leaves = [x.to(device).requires_grad_() for x in rows_of(5, 4, 3, 6)]
    f, weights = (torch.ones(n, device=device, requires_grad=True) for n in (6, 5))
    sk.prototype_distillation_loss(
        *leaves, potentials=f, weights=weights, backend=backend
    ).backward()
    assert [x.grad is None for x in (*leaves, f, weights)] == [False, False] + [True] * 4
    assert largest(leaves[0].grad) > 0


def test_frozen_inputs_get_no_gradient(backend: str, device: str) -> None:
    z, c, t, e = (x.to(device) for x in crops_of(3, 2, 9, 16, 7, 37))
    _, wanted = value_and_gradients(
        lambda z, c: sk.prototype_distillation_loss(z, c, t, e, backend=backend), z, c
    )
    for i, want in enumerate(wanted):
        inputs = [z, c]
        inputs[i] = inputs[i].clone().requires_grad_()
        loss = sk.prototype_distillation_loss(*inputs, t, e, backend=backend)
        (got,) = torch.autograd.grad(-4 * loss, inputs[i])
        assert largest(got + 4 * want) <= 4e-6 * largest(want)
    assert not sk.prototype_distillation_loss(z, c, t, e, backend=backend).requires_grad


def test_layouts(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in rows_of(6, 5, 4, 7)]

    def run(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        t, e = inputs[2:]
        return value_and_gradients(
            lambda z, c: sk.prototype_distillation_loss(z, c, t, e, backend=backend), *inputs[:2]
        )

    wanted, gradients = run(*inputs)
    for layouts in zip(*map(strided_layouts, inputs), strict=True):
        layout = layouts[0][0]
        if layout == "first dimension expanded":
            continue  # other values
        loss, got = run(*(x for _, x in layouts))
        assert_loss(loss.cpu(), wanted.double().cpu())
        for gradient, want in zip(got, gradients, strict=True):
            assert largest(gradient - want) <= 2e-6 * largest(want), layout


@pytest.mark.parametrize("crops", [False, True])
def test_no_rows(crops: bool, backend: str, device: str) -> None:
    inputs = crops_of(3, 2, 0, 5, 4, 7) if crops else rows_of(0, 5, 4, 7)
    leaves = [x.to(device).requires_grad_() for x in inputs]
    loss = sk.prototype_distillation_loss(*leaves, backend=backend)
    loss.backward()
    assert loss == 0
    assert leaves[0].grad.shape == leaves[0].shape
    assert torch.equal(leaves[1].grad, torch.zeros_like(leaves[1]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_bad_row_makes_no_plausible_loss(
    value: float, side: int, weighted: bool, backend: str, device: str
) -> None:
    """Not even with a weight of 0: its gradient would be NaN."""
    inputs = [x.clone() for x in rows_of(5, 4, 3, 6)]
    inputs[side][1, 2] = value
    weights = torch.tensor([1.0, 0, 1, 1, 1], device=device) if weighted else None
    f = torch.zeros(6, device=device)
    t, e = (x.to(device) for x in inputs[2:])
    for potentials in (None, f):
        loss, (d_features, _) = value_and_gradients(
            lambda z, c, f=potentials: sk.prototype_distillation_loss(
                z, c, t, e, potentials=f, weights=weights, backend=backend
            ),
            *(x.to(device) for x in inputs[:2]),
        )
        assert loss.isnan()
        # an infinite prototype is -inf, a mask, to some rows
        assert d_features[slice(None) if side == 3 else 1].isnan().any()


def test_autocast_leaves_its_precision(backend: str, device: str) -> None:
    names = ("student_features", "student_prototypes", "teacher_features", "teacher_prototypes")
    inputs = dict(zip(names, (x.to(device) for x in rows_of(6, 5, 4, 7)), strict=True))
    wanted = sk.prototype_distillation_loss(**inputs, backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(sk.prototype_distillation_loss(backend=backend, **inputs), wanted)


def loss_of_rank(rank: int, sizes: list[int], name: str) -> tuple[Tensor, Tensor, Tensor]:
    z, c, t, e = rows_of(sum(sizes), 16, 24, 37)
    z, t, w = (x.split(sizes)[rank] for x in (z, t, ragged(sum(sizes))))
    loss, gradients = value_and_gradients(
        lambda z, c: sk.prototype_distillation_loss(
            z, c, t, e, weights=w, group=dist.group.WORLD, backend=name
        ),
        z, c,
    )  # fmt: skip
    return loss, *gradients


@pytest.mark.parametrize("sizes", [[66], [40, 26], [30, 0, 35, 1]], ids=str)
@pytest.mark.parametrize("name", [x for x in ("reference", "cpu") if x in sk.available_backends()])
def test_any_number_of_ranks_gives_the_codes_of_all_rows(
    name: str, sizes: list[int], tmp_path: Path
) -> None:
    ranks = run_ranks(len(sizes), tmp_path, loss_of_rank, sizes, name)
    inputs = rows_of(66, 16, 24, 37)
    wanted, (d_features, d_prototypes) = value_and_gradients(
        lambda z, c: oracle(z, c, *(x.double() for x in inputs[2:]), weights=ragged(66)),
        *(x.double() for x in inputs[:2]),
    )
    shares = torch.tensor(sizes) / 66  # each rank's mean is over its own rows
    assert_loss(sum(r[0] * w for r, w in zip(ranks, shares, strict=True)), wanted)
    assert_gradient(
        torch.cat([r[1] * w for r, w in zip(ranks, shares, strict=True)]), d_features, 0.07
    )
    assert_gradient(sum(r[2] * w for r, w in zip(ranks, shares, strict=True)), d_prototypes, 0.07)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "student_features must be a torch.Tensor", {"student_features": [1.0]}),
        (TypeError, "teacher_prototypes must be a torch.Tensor", {"teacher_prototypes": None}),
        (ValueError, r"student_features must have shape \[N, D\]", {"student_features": (4,)}),
        (ValueError, r"teacher_features must have shape \[N, E\]", {"teacher_features": (2, 4, 3)}),
        (ValueError, "teacher_features must have shape.*= .4, 3.", {"teacher_features": (5, 3)}),
        (ValueError, "student_features must have shape.*= .4, 2.", {"student_features": (4, 3)}),
        (ValueError, "teacher_prototypes must have shape.*6", {"teacher_prototypes": (5, 3)}),
        (ValueError, "D >= 1", {"student_features": (4, 0), "student_prototypes": (6, 0)}),
        (ValueError, "K >= 1", {"student_prototypes": (0, 2), "teacher_prototypes": (0, 3)}),
        (ValueError, "S >= 2.*got S = 1", {"student_features": (1, 4, 2),
                                           "teacher_features": (1, 4, 3)}),
        (ValueError, "T from 1 to S.*T = 3", {"student_features": (2, 4, 2),
                                              "teacher_features": (3, 4, 3)}),
        (ValueError, r"weights must have shape \[N\]", {"weights": (3,)}),
        (TypeError, "weights must have a floating dtype", {"weights": torch.ones(4).long()}),
        (ValueError, r"potentials must have shape \[K\]", {"potentials": (5,)}),
        (TypeError, "potentials must be torch.float32", {"potentials": torch.ones(6).double()}),
        (ValueError, "group was given beside potentials", {"potentials": (6,), "group": "all"}),
        (TypeError, "group must be a torch.distributed.ProcessGroup", {"group": "all"}),
        (ValueError, "temperature must be a positive number", {"temperature": 0.0}),
        (ValueError, "epsilon must be a positive number", {"epsilon": -1.0}),
        (ValueError, "iterations must be at least 1", {"iterations": 0}),
        (ValueError, "precision must be one of", {"precision": "half"}),
        (ValueError, "unknown backend", {"backend": "fast"}),
    ],
)  # fmt: skip
def test_refusals(error: type[Exception], message: str, change: dict[str, object]) -> None:
    arguments: dict[str, object] = {
        "student_features": (4, 2), "student_prototypes": (6, 2),
        "teacher_features": (4, 3), "teacher_prototypes": (6, 3),
    }  # fmt: skip
    arguments |= change
    for name, value in arguments.items():
        if isinstance(value, tuple):
            arguments[name] = torch.ones(value)
    with pytest.raises(error, match=f"^{OP}: .*{message}"):
        sk.prototype_distillation_loss(**arguments)
