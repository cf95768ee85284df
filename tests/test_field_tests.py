"""What the code bases' own tests say of their Sinkhorns and losses, said of our drop-ins.

Each is stated anew from what that project's test asserts. DINOv2, DINOv3, CAPI and the official
code have none for these functions.
"""

import math

import pytest
import torch
from compare import generator
from torch import Tensor

from swav_kernels.compat import bolts, lightly, mmpretrain, solo_learn, vissl


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


# --- lightly: tests/loss/test_swav_loss.py, test_msn_loss.py, test_capi_loss.py -----------------


def test_lightly_refuses_to_gather_where_torch_has_no_distributed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lightly.SwaVLoss(sinkhorn_gather_distributed=True)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sinkhorn_gather_distributed"):
        lightly.SwaVLoss(sinkhorn_gather_distributed=True)
    lightly.SwaVLoss()


@pytest.mark.parametrize("small", range(6))
@pytest.mark.parametrize("iterations", range(3))
@pytest.mark.parametrize(("samples", "queued"), [(32, 0), (32, 128), (1, 0)])
def test_lightly_loss_is_small_where_all_crops_agree(
    samples: int, queued: int, small: int, iterations: int
) -> None:
    scores = torch.eye(samples, 32)
    queue = [torch.eye(queued, 32)] * 2 if queued else None
    loss = lightly.SwaVLoss(sinkhorn_iterations=iterations)([scores] * 2, [scores] * small, queue)
    assert loss.shape == (1,)
    assert loss.isfinite()
    if samples > 1:  # one sample's codes are spread evenly, whatever it scores
        assert loss < 0.5


@pytest.mark.parametrize("small", range(6))
@pytest.mark.parametrize("iterations", range(3))
def test_lightly_loss_of_one_prototype_is_nothing(small: int, iterations: int) -> None:
    scores = torch.eye(32, 1)
    loss = lightly.SwaVLoss(sinkhorn_iterations=iterations)([scores] * 2, [scores] * small)
    assert loss == 0


def test_lightly_msn_changes_probabilities_by_iterations_alone() -> None:
    probabilities = torch.rand(8, 10, generator=generator(0))
    assert (lightly.msn_sinkhorn(probabilities) != probabilities).all()
    assert torch.equal(lightly.msn_sinkhorn(probabilities, iterations=0), probabilities)


@pytest.mark.parametrize("strict", [False, True])
def test_lightly_capi_gives_distributions_of_each_position(strict: bool) -> None:
    logits = normal(6, 5, 10)
    codes = lightly.capi_sinkhorn_knopp(logits, iterations=3, strict=strict)
    assert codes.shape == logits.shape
    torch.testing.assert_close(codes.sum(-1), torch.ones(6, 5), atol=1e-4, rtol=0)
    alone = lightly.capi_sinkhorn_knopp(logits[:, 1:2], iterations=3, strict=strict)
    torch.testing.assert_close(codes[:, 1:2], alone, atol=1e-5, rtol=0)


# --- solo-learn: tests/losses/test_swav.py, tests/methods/test_swav.py --------------------------


def test_solo_learn_loss_falls_by_gradient_descent() -> None:
    features = normal(2, 64, 32).requires_grad_()
    prototypes = torch.nn.functional.normalize(normal(48, 32, seed=1), dim=1)
    sinkhorn, losses = solo_learn.SinkhornKnopp(10, 0.05, 1), []
    for _ in range(20):
        scores = features @ prototypes.T  # [V, N, K] in one tensor, as they pass it
        codes = [sinkhorn(view)[: len(view)] for view in scores]
        loss = solo_learn.swav_loss_func(scores, codes, temperature=0.1)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, features)
        features.data.sub_(0.5 * gradient)
    assert 0 < losses[-1] < losses[0]


# --- VISSL: tests/test_losses.py; mmpretrain: test_selfsup/test_swav.py; bolts: test_models.py ---


def test_vissl_takes_scores_that_are_all_alike() -> None:
    exponentials = torch.ones(2048, 128).div(0.05).exp().t()
    codes = vissl.distributed_sinkhornknopp(exponentials, 3, False, 1, False, False)
    torch.testing.assert_close(codes, torch.full((2048, 128), 1 / 128), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["mmpretrain", "bolts"])
def test_two_images_in_eight_crops_have_a_loss(name: str) -> None:
    scores = torch.nn.functional.normalize(normal(8, 2, 300), dim=-1)
    loss = torch.zeros(())
    for crop in range(2):
        if name == "mmpretrain":
            codes = mmpretrain.distributed_sinkhorn(scores[crop], 3, 1, 0.05)
        else:
            codes = bolts.sinkhorn(None, scores[crop].div(0.05).exp().t(), 3)
        log_p = scores.div(0.1).log_softmax(-1)
        loss -= (codes * log_p).sum(-1).mean(1)[[v for v in range(8) if v != crop]].mean() / 2
    assert isinstance(loss.item(), float)
    assert 0.5 * math.log(300) < loss < 2 * math.log(300)
