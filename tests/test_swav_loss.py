"""swav_loss against the oracles: scores, a Sinkhorn for each assign crop, the double loop."""

import pytest
import torch
from compare import (
    HALF_DTYPES,
    assert_gradient,
    assert_loss,
    assert_no_worse_than_eager,
    crops,
    generator,
    largest,
    strided_layouts,
    swav_loss,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk

ASSIGNS = [(0,), (0, 1), (0, 1, 2), (2, 0)]
# (V, B, D, K): one sample, one prototype, one dimension, around a tile, several tiles
SHAPES = [
    (2, 1, 1, 1),
    (2, 1, 16, 37),
    (2, 33, 16, 1),
    (3, 33, 1, 5),
    (2, 63, 33, 130),
    (3, 65, 128, 64),
    (2, 5, 17, 300),
]


def check(
    features: Tensor, prototypes: Tensor, backend: str, device: str, **keywords: object
) -> None:
    """Hold value and both gradients to the bounds."""
    on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in keywords.items()}
    in_double = {k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items()}
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, backend=backend, **on_device),
        features.to(device),
        prototypes.to(device),
    )
    wanted, wanted_gradients = value_and_gradients(
        lambda z, c: swav_loss(z, c, **in_double), features.double(), prototypes.double()
    )
    assert loss.dtype == torch.float32
    assert_loss(loss, wanted, keywords.get("temperature", 0.1))
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert_gradient(got, want, keywords.get("epsilon", 0.05))


@pytest.mark.parametrize(("num_crops", "num_samples", "dim", "num_prototypes"), SHAPES)
def test_shapes(
    backend: str, device: str, num_crops: int, num_samples: int, dim: int, num_prototypes: int
) -> None:
    features, prototypes = crops(num_crops, num_samples, dim, num_prototypes)
    if dim == 1:  # unit rows would be +-1, whose gradients cancel
        features = features * torch.linspace(0.2, 1, num_samples).unsqueeze(1)
        prototypes = prototypes * torch.linspace(1, 0.3, num_prototypes).unsqueeze(1)
    check(features, prototypes, backend, device)


@pytest.mark.heavy
def test_large_shapes(backend: str, device: str) -> None:
    check(*crops(8, 64, 128, 3000), backend, device)
    check(*crops(2, 513, 64, 301), backend, device)


@pytest.mark.parametrize("num_crops", range(2, 9))
def test_numbers_of_crops(backend: str, device: str, num_crops: int) -> None:
    for assign in ASSIGNS:
        if max(assign) < num_crops:
            check(*crops(num_crops, 9, 16, 37), backend, device, assign=assign)


@pytest.mark.parametrize(
    ("epsilon", "temperature", "iterations"),
    [(0.005, 0.1, 3), (0.03, 0.07, 1), (0.05, 0.1, 10), (0.05, 0.025, 2), (0.5, 1.0, 3)],
)
def test_settings(
    backend: str, device: str, epsilon: float, temperature: float, iterations: int
) -> None:
    check(
        *crops(3, 33, 16, 37), backend, device,
        epsilon=epsilon, temperature=temperature, iterations=iterations,
    )  # fmt: skip


def test_defaults(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(3, 33, 16, 37))
    explicit = sk.swav_loss(
        features, prototypes, temperature=0.1, epsilon=0.05, iterations=3, assign=(0, 1),
        queue=None,
        potentials=None, group=None, hard=False, prototype_weights=None, precision="float32",
        normalize=False, return_stats=False, backend=backend,
    )  # fmt: skip
    assert torch.equal(sk.swav_loss(features, prototypes, backend=backend), explicit)


@pytest.mark.parametrize("assign", ASSIGNS)
@pytest.mark.parametrize("length", [1, 70])
def test_queue_joins_the_sinkhorn_and_never_the_loss(
    backend: str, device: str, assign: tuple[int, ...], length: int
) -> None:
    queue = unit_rows(len(assign), length, 16, seed=5, dtype=torch.float32)
    check(*crops(3, 9, 16, 37), backend, device, assign=assign, queue=queue)


def test_an_empty_queue_is_none(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(2, 9, 16, 37))
    empty = features[:, :0]
    got = sk.swav_loss(features, prototypes, queue=empty, backend=backend)
    assert torch.equal(got, sk.swav_loss(features, prototypes, backend=backend))


def test_hard_codes(backend: str, device: str) -> None:
    check(*crops(3, 33, 16, 37), backend, device, hard=True)
    # identical prototypes tie: the lowest index takes the code (dyadic, so that products are exact)
    features, prototypes = ((x * 8).round() / 8 for x in crops(2, 33, 4, 37))
    prototypes[-1] = prototypes[1]
    check(features, prototypes, backend, device, hard=True)


def test_prototype_weights(backend: str, device: str) -> None:
    weights = torch.rand(37, generator=generator(3))
    weights[[0, 5, 36]] = 0  # switched off
    check(*crops(3, 33, 16, 37), backend, device, prototype_weights=weights)


@pytest.mark.parametrize("hard", [False, True])
def test_potentials_take_the_place_of_sinkhorn(backend: str, device: str, hard: bool) -> None:
    features, prototypes = crops(3, 33, 16, 37)
    for shape in ((2, 37), (37,)):
        f = torch.randn(shape, generator=generator(4))
        check(features, prototypes, backend, device, potentials=f, hard=hard)
    f[3] = -torch.inf  # a dead prototype
    check(features, prototypes, backend, device, potentials=f, hard=hard)


def test_zero_potentials_are_a_plain_softmax(backend: str, device: str) -> None:
    features, prototypes = crops(3, 33, 16, 37)
    check(features, prototypes, backend, device, potentials=torch.zeros(2, 37))
    codes = torch.softmax(features[:2].double() @ prototypes.double().T / 0.05, -1)
    composed = sk.swapped_cross_entropy(
        features.double() @ prototypes.double().T, codes, backend="reference"
    )
    loss = sk.swav_loss(
        features.to(device), prototypes.to(device), potentials=torch.zeros(2, 37, device=device),
        backend=backend,
    )  # fmt: skip
    assert_loss(loss, composed)


def test_normalize_covers_features_and_queue(backend: str, device: str) -> None:
    features, prototypes = crops(3, 33, 16, 37)
    queue = 7 * unit_rows(2, 20, 16, seed=5, dtype=torch.float32)
    check(features * 3, prototypes, backend, device, normalize=True, queue=queue)
    features[1, 4] = 0
    check(features, prototypes, backend, device, normalize=True)
    leaf = features.to(device).requires_grad_()
    sk.swav_loss(leaf, prototypes.to(device), normalize=True, backend=backend).backward()
    assert torch.equal(leaf.grad[1, 4], torch.zeros_like(leaf.grad[1, 4]))


def test_bfloat16_precision_is_near_and_not_the_same(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in crops(3, 33, 64, 130)]
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, precision="bfloat16", backend=backend), *inputs
    )
    exact, exact_gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, backend=backend), *inputs
    )
    assert 0 < abs(loss - exact) <= 2e-2 * exact
    for got, want in zip(gradients, exact_gradients, strict=True):
        assert got.dtype == torch.float32
        assert 0 < largest(got - want) <= 2e-2 * largest(want)
    if backend != "triton":  # which also rounds the terms that it multiplies prototypes by
        rounded = sk.swav_loss(*(x.bfloat16().float() for x in inputs), backend=backend)
        assert abs(loss - rounded) <= 5e-6  # both operands are rounded, and nothing else
    f = sk.swav_potentials(inputs[0][:2], inputs[1], precision="bfloat16", backend=backend)
    assert f.dtype == torch.float32
    assert not torch.equal(f, sk.swav_potentials(inputs[0][:2], inputs[1], backend=backend))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("shape", [(2, 33, 16, 37), (3, 9, 64, 130)])
def test_half_inputs_are_no_worse_than_eager(
    backend: str, device: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    features, prototypes = (x.to(dtype).to(device) for x in crops(*shape))
    loss = sk.swav_loss(features, prototypes, backend=backend)
    assert loss.dtype == torch.float32
    assert_no_worse_than_eager(
        lambda z, c: sk.swav_loss(z, c, backend=backend), swav_loss, features, prototypes
    )


def test_frozen_inputs_get_no_gradient(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(3, 9, 16, 37))
    _, wanted = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, backend=backend), features, prototypes
    )
    z = features.clone().requires_grad_()
    c = prototypes.clone().requires_grad_()
    sk.swav_loss(z, prototypes, backend=backend).backward()
    assert largest(z.grad - wanted[0]) <= 1e-6 * largest(wanted[0])
    sk.swav_loss(features, c, backend=backend).backward()
    assert largest(c.grad - wanted[1]) <= 1e-6 * largest(wanted[1])
    assert not sk.swav_loss(features, prototypes, backend=backend).requires_grad
    queue = unit_rows(2, 5, 16, dtype=torch.float32).to(device).requires_grad_()
    assert not sk.swav_loss(features, prototypes, queue=queue, backend=backend).requires_grad


def test_no_gradient_work_without_need(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, prototypes = (x.to(device).requires_grad_() for x in crops(3, 9, 16, 37))
    with torch.no_grad():
        assert not sk.swav_loss(features, prototypes, backend=backend).requires_grad
    if backend == "reference":
        return
    from swav_kernels import dispatch

    kernels = dispatch.kernels("swav_loss", backend)
    needs, run = [], kernels.loss_and_gradients

    def spy(*args: object) -> object:
        needs.append(args[8:10])
        result = run(*args)
        assert [gradient is not None for gradient in result[1:3]] == list(args[8:10])
        return result

    monkeypatch.setattr(kernels, "loss_and_gradients", spy)
    with torch.no_grad():
        sk.swav_loss(features, prototypes, backend=backend)
    sk.swav_loss(features.detach(), prototypes.detach(), backend=backend)
    sk.swav_loss(features, prototypes.detach(), backend=backend)
    sk.swav_loss(features.detach(), prototypes, backend=backend)
    assert needs == [(False, False), (False, False), (True, False), (False, True)]


def test_the_incoming_gradient_multiplies(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in crops(2, 9, 16, 37)]
    _, once = value_and_gradients(lambda z, c: sk.swav_loss(z, c, backend=backend), *inputs)
    _, scaled = value_and_gradients(lambda z, c: -4 * sk.swav_loss(z, c, backend=backend), *inputs)
    for a, b in zip(once, scaled, strict=True):
        assert torch.equal(b, -4 * a)


@pytest.mark.float64
def test_float64_and_gradcheck(backend: str, device: str) -> None:
    features = unit_rows(3, 4, 5, seed=1).to(device)
    prototypes = unit_rows(6, 5, seed=2).to(device)
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, backend=backend), features, prototypes
    )
    wanted, wanted_gradients = value_and_gradients(swav_loss, features.cpu(), prototypes.cpu())
    assert loss.dtype == torch.float64
    assert abs(loss.item() - wanted.item()) <= 1e-12
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert largest(got.cpu() - want) <= 1e-12
    # codes carry no gradient, so they must not move with the inputs: hard ones do not
    f = sk.swav_potentials(features[:2], prototypes, backend=backend)
    leaves = (features.clone().requires_grad_(), prototypes.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda z, c: sk.swav_loss(z, c, temperature=0.5, potentials=f, hard=True, backend=backend),
        leaves,
    )


@pytest.mark.float64
def test_gradcheck_of_the_prediction_with_soft_codes(backend: str, device: str) -> None:
    # crop 0 alone is coded and stays fixed, so the crops that predict may move freely
    features = unit_rows(3, 4, 5, seed=1).to(device)
    prototypes = unit_rows(6, 5, seed=2).to(device)
    f = sk.swav_potentials(features[:1], prototypes, backend=backend)
    others = features[1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: sk.swav_loss(
            torch.cat([features[:1], z]), prototypes, temperature=0.5, assign=(0,), potentials=f,
            backend=backend,
        ),
        others,
    )  # fmt: skip


def test_strided_inputs(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(2, 9, 16, 37))
    queue = unit_rows(2, 20, 16, seed=5, dtype=torch.float32).to(device)
    for layouts in zip(
        strided_layouts(features), strided_layouts(prototypes), strided_layouts(queue), strict=True
    ):
        z, c, rows = (tensor for _, tensor in layouts)
        got, gradients = value_and_gradients(
            lambda z, c, rows=rows: sk.swav_loss(z, c, queue=rows, backend=backend), z, c
        )
        plain, plain_gradients = value_and_gradients(
            lambda z, c, rows=rows: sk.swav_loss(z, c, queue=rows.contiguous(), backend=backend),
            z.contiguous(),
            c.contiguous(),
        )
        assert torch.equal(got, plain)
        assert all(map(torch.equal, gradients, plain_gradients))


def test_empty_batch(backend: str, device: str) -> None:
    features = torch.empty(3, 0, 16, device=device, requires_grad=True)
    prototypes = unit_rows(37, 16, dtype=torch.float32).to(device).requires_grad_()
    loss = sk.swav_loss(features, prototypes, backend=backend)
    assert loss.item() == 0
    loss.backward()
    assert features.grad.shape == (3, 0, 16)
    assert torch.equal(prototypes.grad, torch.zeros_like(prototypes))
    queue = unit_rows(2, 5, 16, dtype=torch.float32).to(device)
    assert sk.swav_loss(features, prototypes, queue=queue, backend=backend).item() == 0
