"""What torch adds to tensors: other default devices, versions, batches of gradients, transforms."""

from collections.abc import Callable

import pytest
import torch
from compare import crops, unit_rows
from torch import Tensor
from torch.autograd import forward_ad

import swav_kernels as sk

pytestmark = [
    pytest.mark.op("swav_loss"),
    # torch's own forward-mode formulas still use it
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]


def test_the_default_device_is_not_where_kernels_write(backend: str, device: str) -> None:
    features, prototypes = (x.to(device).requires_grad_() for x in crops(3, 17, 8, 5))
    queue = unit_rows(2, 3, 8, dtype=torch.float32).to(device)

    def run() -> list[Tensor]:
        loss, stats = sk.swav_loss(
            features, prototypes, queue=queue, return_stats=True, backend=backend
        )
        scores = sk.prototype_scores(features, prototypes, backend=backend)
        codes = sk.sinkhorn(scores[:2], backend=backend)
        pair = sk.swapped_cross_entropy(scores, codes, backend=backend)
        pair = pair + sk.prototype_distillation_loss(
            features, prototypes, queue.new_ones(2, 17, 3), prototypes[:, :3], backend=backend
        )
        return [*torch.autograd.grad(loss + pair, (features, prototypes)), codes, *stats.values()]

    wanted = run()
    with torch.device("meta"):
        got = run()
    for x, y in zip(got, wanted, strict=True):
        assert torch.equal(x, y)


@pytest.mark.op("sinkhorn")
def test_writing_into_out_is_seen_by_autograd(backend: str, device: str) -> None:
    out, factor = torch.ones(6, 5, device=device), torch.ones((), device=device)
    loss = (out * factor.requires_grad_()).sum()
    sk.sinkhorn(torch.eye(6, 5, device=device), out=out, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        sk.sinkhorn(torch.eye(6, 5, device=device), out=torch.ones_like(out), backend=backend)


def test_gradients_in_batches(backend: str, device: str) -> None:
    features, prototypes = (x.to(device).requires_grad_() for x in crops(3, 17, 8, 5))
    loss = sk.swav_loss(features, prototypes, backend=backend)
    scales = torch.tensor([1.0, 2.0], device=device)
    (batch,) = torch.autograd.grad(loss, features, scales, is_grads_batched=True, retain_graph=True)
    (once,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(batch, torch.stack([once, 2 * once]))


def test_saved_tensors_of_a_hook_are_left_alone(backend: str, device: str) -> None:
    features, prototypes = (x.to(device).requires_grad_() for x in crops(3, 17, 8, 5))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sk.swav_loss(features, prototypes, backend=backend)
    before = [x.clone() for x in kept]
    (3 * loss).backward()
    assert kept
    for x, y in zip(kept, before, strict=True):
        assert torch.equal(x, y)


OPS: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "swav_loss": lambda z, c, b: sk.swav_loss(z, c, backend=b),
    "prototype_distillation_loss": lambda z, c, b: sk.prototype_distillation_loss(
        z, c, z.detach()[:2, :, :3], c.detach()[:, :3], backend=b
    ),
    "prototype_scores": lambda z, c, b: sk.prototype_scores(z, c, backend=b).sum(),
    "swapped_cross_entropy": lambda z, c, b: sk.swapped_cross_entropy(
        z, torch.full_like(z.detach()[:2], 1 / 8), backend=b
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_a_derivative_is_right_or_refused(name: str, backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(3, 17, 8, 5))
    op = OPS[name]
    (wanted,) = torch.autograd.grad(
        op(features.requires_grad_(), prototypes, "reference"), features
    )
    features = features.detach()
    if backend != "reference":
        with pytest.raises(ValueError, match=f"{name}: .*torch.func.*backend='reference'"):
            torch.func.grad(lambda z: op(z, prototypes, backend))(features)
        with (
            forward_ad.dual_level(),
            pytest.raises(ValueError, match=f"{name}: .*tangent.*backend='reference'"),
        ):
            op(forward_ad.make_dual(features, torch.ones_like(features)), prototypes, backend)
        return
    got = torch.func.grad(lambda z: op(z, prototypes, backend))(features)
    torch.testing.assert_close(got, wanted)
    with forward_ad.dual_level():
        dual = op(forward_ad.make_dual(features, torch.ones_like(features)), prototypes, backend)
        tangent = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, wanted.sum(), rtol=1e-4, atol=1e-5)


def test_bfloat16_rounds_the_operands_of_the_reference_and_not_its_gradient() -> None:
    features, prototypes = (x.requires_grad_() for x in crops(3, 17, 8, 5))
    sk.swav_loss(features, prototypes, precision="bfloat16", backend="reference").backward()
    for x in (features, prototypes):
        assert (x.grad != x.grad.bfloat16()).float().mean() > 0.9


def test_a_float64_queue_leaves_the_dtype_to_features_and_prototypes(
    backend: str, device: str
) -> None:
    features, prototypes = (x.to(device) for x in crops(2, 17, 8, 5))
    queue = unit_rows(2, 9, 8, seed=3).to(device)
    loss = sk.swav_loss(features, prototypes, queue=queue, backend=backend)
    wanted = sk.swav_loss(features, prototypes, queue=queue.float(), backend=backend)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
