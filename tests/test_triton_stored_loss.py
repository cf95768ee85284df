"""The loss of precision="bfloat16" from scores stored in halves: when, and what it means."""

from typing import Any

import pytest
import torch
from compare import crops, largest, swav_loss, unit_rows, value_and_gradients
from torch import Tensor

import swav_kernels as sk

# (V, B, D, K): one sample, one dimension, around a tile, more prototypes than samples
SHAPES = [(2, 1, 16, 37), (3, 33, 1, 5), (3, 65, 128, 64), (4, 64, 33, 130), (2, 5, 17, 300)]
interpreted = pytest.mark.interpreted


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, ...]]]:
    """Store scores of any size; the grids of the launches."""
    from interpreter import launched_grids

    from swav_kernels.triton_kernels import stored_loss

    monkeypatch.setattr(stored_loss, "LEAST_BYTES", 0)
    launched_grids.clear()
    return launched_grids


def ours(*inputs: Tensor, **keywords: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value and gradients of the kernels."""
    return value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, precision="bfloat16", backend="triton", **keywords),
        *inputs,
    )


def check(features: Tensor, prototypes: Tensor, **keywords: Any) -> None:
    """Hold value and both gradients to the bounds of precision="bfloat16"."""
    in_double = {k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items()}
    loss, gradients = ours(features, prototypes, **keywords)
    wanted, wanted_gradients = value_and_gradients(
        lambda z, c: swav_loss(z, c, **in_double), features.double(), prototypes.double()
    )
    assert abs(loss - wanted) <= 1e-2 * wanted
    for x, got, want in zip((features, prototypes), gradients, wanted_gradients, strict=True):
        assert got.dtype == x.dtype
        assert largest(got.double() - want) <= 2e-2 * largest(want)


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(launched: dict[str, Any], shape: tuple[int, int, int, int]) -> None:
    features, prototypes = crops(*shape)
    if shape[2] == 1:  # unit rows would be +-1, whose gradients cancel
        features = features * torch.linspace(0.2, 1, shape[1]).unsqueeze(1)
        prototypes = prototypes * torch.linspace(1, 0.3, shape[3]).unsqueeze(1)
    check(features, prototypes)
    assert "_stored_loss_kernel" in launched


@interpreted
@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("assign", [(0,), (0, 1, 2), (2, 0)])
def test_assign_crops_and_a_queue(assign: tuple[int, ...]) -> None:
    queue = unit_rows(len(assign), 20, 64, seed=5, dtype=torch.float32)
    check(*crops(3, 33, 64, 37), assign=assign, queue=queue)


@interpreted
@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype: torch.dtype) -> None:
    check(*(x.to(dtype) for x in crops(3, 33, 16, 37)))


@interpreted
@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_no_length_of_a_row_overflows_a_half(scale: float) -> None:
    features, prototypes = crops(3, 33, 16, 37)
    settings = {"temperature": 0.1 * scale, "epsilon": 0.05 * scale}
    check(features * scale, prototypes, **settings)
    check(features, prototypes * scale, **settings)
    # rows of all lengths side by side, and one of zeros
    prototypes *= torch.logspace(-30, 0, 37).unsqueeze(1)
    prototypes[4] = features[1, 5] = 0
    check(features * scale, prototypes, **settings)


@interpreted
@pytest.mark.usefixtures("launched")
def test_dead_prototypes_and_bad_features() -> None:
    features, prototypes = crops(3, 33, 16, 37)
    f = sk.swav_potentials(features[:2], prototypes, backend="triton")
    f[1, [0, 7, 36]] = -torch.inf
    check(features, prototypes, potentials=f)
    for value in (torch.nan, torch.inf):
        for crop in (0, 2):  # an assign crop, and one that only predicts
            bad = features.clone()
            bad[crop, 4, 5] = value
            loss, gradients = ours(bad, prototypes)
            assert loss.isnan()
            assert gradients[1].isnan().any()
    f[0, 3] = torch.nan
    assert ours(features, prototypes, potentials=f)[0].isnan()


@interpreted
def test_only_what_is_needed_is_computed(launched: dict[str, Any]) -> None:
    features, prototypes = crops(3, 33, 16, 37)
    loss, wanted = ours(features, prototypes)
    for needs in ((True, False), (False, True), (False, False)):
        leaves = [
            x.clone().requires_grad_(need)
            for x, need in zip((features, prototypes), needs, strict=True)
        ]
        launched.clear()
        value = sk.swav_loss(*leaves, precision="bfloat16", backend="triton")
        assert torch.equal(value.detach(), loss)
        assert len(launched["_product_kernel"]) == 1 + sum(needs)
        if any(needs):
            value.backward()
        for leaf, need, gradient in zip(leaves, needs, wanted, strict=True):
            assert leaf.grad is None if not need else torch.equal(leaf.grad, gradient)


@interpreted
def test_statistics_are_those_of_the_streamed_loss(
    launched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from swav_kernels.triton_kernels import stored_loss

    keywords = {"precision": "bfloat16", "return_stats": True, "backend": "triton"}
    inputs = crops(3, 33, 16, 37)
    loss, stats = sk.swav_loss(*inputs, **keywords)
    assert "_stored_loss_kernel" in launched
    monkeypatch.setattr(stored_loss, "MOST_BYTES", 0)
    launched.clear()
    streamed, wanted = sk.swav_loss(*inputs, **keywords)
    assert "_stored_loss_kernel" not in launched
    assert 0 < abs(loss - streamed) <= 1e-3 * streamed
    assert all(torch.equal(stats[name], wanted[name]) for name in stats if "loss" not in name)


@interpreted
@pytest.mark.usefixtures("launched")
def test_an_empty_batch() -> None:
    loss, gradients = ours(torch.empty(3, 0, 16), unit_rows(37, 16, dtype=torch.float32))
    assert loss == 0
    assert gradients[0].shape == (3, 0, 16)
    assert torch.equal(gradients[1], torch.zeros(37, 16))


def test_the_form_is_chosen_by_size_and_precision() -> None:
    from swav_kernels.triton_kernels.stored_loss import fits

    def stored(*shape: int, hard: bool = False, precision: str = "bfloat16") -> bool:
        num_crops, num_samples, num_prototypes = shape
        features = torch.empty(num_crops, num_samples, 128, device="meta")
        return fits(features, torch.empty(num_prototypes, 128, device="meta"), hard, precision)

    assert stored(2, 4096, 3000)
    assert stored(8, 4096, 8192)
    assert not stored(2, 4096, 3000, precision="float32")
    assert not stored(2, 4096, 3000, hard=True)
    assert not stored(2, 512, 3000)  # launches cost more
    assert not stored(2, 65536, 16385)  # no program holds such a row
    assert not stored(2, 2**18, 8192)  # 8 GiB
