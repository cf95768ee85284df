"""Derivatives of torch.func, forward-mode and second ones: right, or refused with the way out."""

import functools
from collections.abc import Callable

import pytest
import torch
from compare import crops, generator, random_codes, unit_rows, value_and_gradients
from torch import Tensor

import swav_kernels as sk

pytestmark = [
    pytest.mark.op("swav_loss"),
    # torch's own forward-mode formulas still use it
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]
V, B, D, K = 3, 9, 8, 5  # B is odd: prototype_cross_entropy pads
TEACHER = unit_rows(2, B, 4, seed=6)
CODES = random_codes(2, B, K)
WEIGHTS = torch.arange(B) / B  # of rows; 0 among them
Loss = Callable[..., Tensor]
ALIVE: list[Tensor] = []


def alive(scores: Tensor) -> Tensor:
    """Keeps scores and codes, which a second derivative needs again."""
    ALIVE.append(scores)
    return scores


# functions of features [V, B, D] and prototypes [K, D]
LOSSES: dict[str, Loss] = {
    "swav_loss": sk.swav_loss,
    "swav_loss normalized, with a queue": functools.partial(
        sk.swav_loss, normalize=True, hard=True, queue=unit_rows(2, 4, D, seed=5).float()
    ),
    "prototype_scores": lambda z, c, **on: sk.prototype_scores(z, c, **on).square().sum(),
    "swapped_cross_entropy": lambda z, c, **on: sk.swapped_cross_entropy(
        alive(z @ c.t()), alive(CODES.to(z)), **on
    ),
    "prototype_distillation_loss": lambda z, c, **on: sk.prototype_distillation_loss(
        z, c, TEACHER.to(z), c.detach()[:, :4], weights=WEIGHTS.to(z), **on
    ),
    "prototype_cross_entropy": lambda z, c, **on: sk.prototype_cross_entropy(
        alive(z[0] @ c.t()), alive(CODES[0].to(z)), weights=WEIGHTS.to(z), **on
    ),
}
loss_of = pytest.mark.parametrize("name", LOSSES)


def inputs() -> tuple[Tensor, Tensor]:
    return crops(V, B, D, K)


def directions() -> tuple[Tensor, ...]:
    return tuple(torch.randn(x.shape, generator=generator(8)) for x in inputs())


@loss_of
def test_torch_func_is_right_where_no_backend_is_named(name: str) -> None:
    loss = LOSSES[name]
    value, gradients = value_and_gradients(loss, *inputs())
    both = torch.func.grad_and_value(loss, argnums=(0, 1))(*inputs())
    for got, want in zip((both[1], *both[0]), (value, *gradients), strict=True):
        torch.testing.assert_close(got, want)
    along = sum((x * t).sum() for x, t in zip(gradients, directions(), strict=True))
    _, tangent = torch.func.jvp(loss, inputs(), directions())
    torch.testing.assert_close(tangent, along, rtol=1e-4, atol=1e-5)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(loss)(*inputs()), gradients[0], rtol=1e-4, atol=1e-6)


@loss_of
def test_vmap_over_features_and_over_prototypes(name: str) -> None:
    loss = LOSSES[name]
    many = [crops(V, B, D, K, seed=i) for i in range(3)]
    features, prototypes = (torch.stack(x) for x in zip(*many, strict=True))
    for in_dims in ((0, None), (None, 0), (0, 0)):
        args = [x if dim == 0 else x[0] for x, dim in zip((features, prototypes), in_dims)]
        got = torch.func.vmap(loss, in_dims)(*args)
        grads = torch.func.vmap(torch.func.grad(loss), in_dims)(*args)
        for i in range(3):
            one = [x[i] if dim == 0 else x for x, dim in zip(args, in_dims)]
            value, (gradient, _) = value_and_gradients(loss, *one)
            torch.testing.assert_close(got[i], value)
            torch.testing.assert_close(grads[i], gradient, rtol=1e-4, atol=1e-6)


@loss_of
def test_a_named_backend_refuses_what_its_kernels_cannot_follow(name: str, backend: str) -> None:
    loss = functools.partial(LOSSES[name], backend=backend)
    if backend == "reference":
        torch.testing.assert_close(
            torch.func.grad(loss)(*inputs()), value_and_gradients(loss, *inputs())[1][0]
        )
        return
    for transformed in (
        lambda: torch.func.grad(loss)(*inputs()),
        lambda: torch.func.jvp(loss, inputs(), directions()),
        lambda: torch.func.vmap(loss, (0, None))(torch.stack(inputs()[:1] * 2), inputs()[1]),
    ):
        with pytest.raises(ValueError, match=r"cannot follow; pass backend='reference' or 'auto'"):
            transformed()


@loss_of
def test_second_derivatives_are_exact(name: str, backend: str, device: str) -> None:
    loss = functools.partial(LOSSES[name], backend=backend)

    def penalty(z: Tensor, c: Tensor, loss: Loss) -> Tensor:
        gradients = torch.autograd.grad(2 * loss(z, c), (z, c), create_graph=True)
        return sum(x.square().sum() for x in gradients)

    dtype = torch.float32 if backend == "triton" else torch.float64
    leaves = [x.to(device, dtype) for x in inputs()]
    _, got = value_and_gradients(functools.partial(penalty, loss=loss), *leaves)
    plain = functools.partial(LOSSES[name], backend="reference")
    _, wanted = value_and_gradients(functools.partial(penalty, loss=plain), *leaves)
    for x, y in zip(got, wanted, strict=True):
        assert y.abs().max() > 1e-3
        rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-9, 1e-10)
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def test_second_derivatives_of_inputs_that_are_gone_or_changed_are_refused(
    backend: str, device: str
) -> None:
    if backend == "reference":
        return  # plain PyTorch keeps what it needs
    features, prototypes = (x.to(device).requires_grad_() for x in inputs())
    loss = sk.swapped_cross_entropy(features @ prototypes.t(), CODES.to(device), backend=backend)
    with pytest.raises(
        RuntimeError, match="swapped_cross_entropy: .* gone; keep a name .*'reference'"
    ):
        torch.autograd.grad(loss, features, create_graph=True)
    loss = sk.swav_loss(features, prototypes, backend=backend)
    torch.autograd.grad(loss, features, retain_graph=True)  # the first needs them no more
    with torch.no_grad():
        prototypes.mul_(2)
    with pytest.raises(RuntimeError, match="swav_loss: .* changed in place; .*'reference'"):
        torch.autograd.grad(loss, features, create_graph=True)


def test_vmap_of_codes_and_potentials_is_one_batched_problem(backend: str, device: str) -> None:
    on = {"backend": backend}
    scores = (unit_rows(4, 2, B, D) @ unit_rows(K, D, seed=1).t()).float().to(device)
    rows = (torch.rand(4, B, generator=generator(1)) + 0.1).to(device)
    shares = (torch.rand(4, K, generator=generator(2)) + 0.1).to(device)
    features, prototypes = (x.to(device) for x in inputs())
    many = torch.stack([features[:2], features[1:]])

    for function in (sk.sinkhorn, sk.sinkhorn_potentials):
        op = functools.partial(function, **on)
        assert torch.equal(torch.func.vmap(op)(scores), torch.stack([op(s) for s in scores]))
        inner = torch.func.vmap(torch.func.vmap(op), in_dims=1)
        assert torch.equal(inner(scores), torch.stack([op(s) for s in scores.transpose(0, 1)]))
        weighted = torch.func.vmap(
            lambda s, w, r, op=op: op(s, sample_weights=w, prototype_weights=r), (0, 0, None)
        )
        wanted = [
            op(s, sample_weights=w, prototype_weights=shares[0])
            for s, w in zip(scores, rows, strict=True)
        ]
        torch.testing.assert_close(weighted(scores, rows, shares[0]), torch.stack(wanted))
        of_shares = torch.func.vmap(lambda s, r, op=op: op(s, prototype_weights=r), (None, 0))
        wanted = [op(scores[0], prototype_weights=r) for r in shares]
        torch.testing.assert_close(of_shares(scores[0], shares), torch.stack(wanted))
    potentials = functools.partial(sk.swav_potentials, **on)
    for in_dims, args in (((0, None), (many, prototypes)), ((None, 0), (many[0], many[:, 0]))):
        got = torch.func.vmap(potentials, in_dims)(*args)
        wanted = [
            potentials(*(x if dim is None else x[i] for x, dim in zip(args, in_dims)))
            for i in range(2)
        ]
        torch.testing.assert_close(got, torch.stack(wanted))


def test_vmap_of_codes_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from swav_kernels.native import sinkhorn as kernels

    seen, run = [], kernels.sinkhorn
    monkeypatch.setattr(kernels, "sinkhorn", lambda s, *rest: (seen.append(s.shape), run(s, *rest)))
    torch.func.vmap(functools.partial(sk.sinkhorn, backend="cpu"))(torch.rand(4, 2, B, K))
    assert seen == [(8, B, K)]


def test_codes_are_constant_in_every_derivative(backend: str, device: str) -> None:
    scores = torch.rand(B, K, generator=generator(3)).to(device)

    def weighted(s: Tensor) -> Tensor:
        return (s * sk.sinkhorn(s, backend=backend)).sum()

    codes = sk.sinkhorn(scores, backend=backend)
    torch.testing.assert_close(torch.func.grad(weighted)(scores), codes)
    _, tangent = torch.func.jvp(weighted, (scores,), (torch.ones_like(scores),))
    torch.testing.assert_close(tangent, codes.sum())


def test_inference_mode_and_subclasses(backend: str, device: str) -> None:
    class Named(Tensor):
        pass

    features, prototypes = (x.to(device) for x in inputs())
    loss = sk.swav_loss(features, prototypes, backend=backend)
    with torch.inference_mode():
        fresh = features.clone()
        assert torch.equal(sk.swav_loss(fresh, prototypes, backend=backend), loss)
    with torch.no_grad():
        leaf = features.clone().requires_grad_()
        assert not sk.swav_loss(leaf, prototypes, backend=backend).requires_grad
    named = features.as_subclass(Named).requires_grad_()
    value = sk.swav_loss(named, torch.nn.Parameter(prototypes), backend=backend)
    value.backward()
    wanted, (gradient, _) = value_and_gradients(
        functools.partial(sk.swav_loss, backend=backend), features, prototypes
    )
    assert torch.equal(value.detach().as_subclass(Tensor), wanted)
    assert torch.equal(named.grad.as_subclass(Tensor), gradient)
