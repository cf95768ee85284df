"""The telemetry of swav_loss against an oracle that walks over the samples."""

import math

import pytest
import torch
from compare import (
    crops,
    swav_codes,
    swav_loss,
    swav_stats,
    unit_rows,
    value_and_gradients,
)
from torch import Tensor

import swav_kernels as sk

ASSIGNS = [(0,), (0, 1), (0, 1, 2), (2, 0)]
STATS = {
    "loss_minus_log_k", "code_entropy", "mean_code_entropy", "usage_entropy", "prototypes_in_use",
    "mean_max_code", "marginal_residual", "view_agreement",
}  # fmt: skip


def check_stats(
    features: Tensor, prototypes: Tensor, backend: str, device: str, **keywords: object
):
    """Compare every entry with the oracle; returns the stats."""
    on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in keywords.items()}
    loss, stats = sk.swav_loss(
        features.to(device), prototypes.to(device), return_stats=True, backend=backend, **on_device
    )
    assert set(stats) == STATS
    assert torch.equal(
        loss, sk.swav_loss(features.to(device), prototypes.to(device), backend=backend, **on_device)
    )
    z, c = features.double(), prototypes.double()
    assign = keywords.pop("assign", (0, 1))
    queue = keywords.pop("queue", None)
    scores = z @ c.T
    codes = swav_codes(
        scores, assign, queue_scores=None if queue is None else queue.double() @ c.T, **keywords
    )
    wanted_loss = swav_loss(
        z, c, assign=assign, queue=None if queue is None else queue.double(), **keywords
    )
    for name, wanted in swav_stats(scores, codes, wanted_loss, assign).items():
        value = stats[name]
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert value.device.type == torch.device(device).type, name
        assert value.item() == pytest.approx(wanted, abs=1e-5, nan_ok=True), name
    return stats


@pytest.mark.parametrize("assign", ASSIGNS)
def test_stats(backend: str, device: str, assign: tuple[int, ...]) -> None:
    features, prototypes = crops(3, 33, 16, 37)
    stats = check_stats(features, prototypes, backend, device, assign=assign)
    assert math.isnan(stats["view_agreement"]) == (len(assign) == 1)
    queue = unit_rows(len(assign), 20, 16, seed=5, dtype=torch.float32)
    check_stats(features, prototypes, backend, device, assign=assign, queue=queue)
    check_stats(features, prototypes, backend, device, assign=assign, hard=True)


def test_stats_of_one_prototype(backend: str, device: str) -> None:
    stats = check_stats(*crops(2, 9, 16, 1), backend, device)
    for name in ("code_entropy", "mean_code_entropy", "usage_entropy"):
        assert stats[name].item() == 1
    assert stats["prototypes_in_use"].item() == 1


def test_stats_tell_a_collapse_that_the_mean_code_hides(backend: str, device: str) -> None:
    features = unit_rows(1, 1, 16, seed=1, dtype=torch.float32).expand(2, 33, 16)
    prototypes = unit_rows(37, 16, seed=2, dtype=torch.float32)
    _, stats = sk.swav_loss(
        features.to(device), prototypes.to(device), return_stats=True, backend=backend
    )
    assert stats["mean_code_entropy"] > 0.999
    assert stats["usage_entropy"] == 0
    assert stats["prototypes_in_use"] == 1
    assert stats["view_agreement"] == 1


def test_stats_carry_the_loss_gradient_unchanged(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in crops(2, 9, 16, 37)]
    _, plain = value_and_gradients(lambda z, c: sk.swav_loss(z, c, backend=backend), *inputs)
    _, with_stats = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, return_stats=True, backend=backend)[0], *inputs
    )
    assert all(map(torch.equal, plain, with_stats))
