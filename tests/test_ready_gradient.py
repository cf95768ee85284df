"""Gradients that come with the loss: scaled by what comes back, for one backward or several."""

import pytest
import torch
from compare import crops
from torch import Tensor

import swav_kernels as sk

pytestmark = [
    pytest.mark.op("swav_loss"),
    pytest.mark.parametrize("op", ["swav_loss", "swapped_cross_entropy"]),
]


def leaves_and_loss(op: str, backend: str, device: str) -> tuple[list[Tensor], Tensor]:
    features, prototypes = (x.to(device).requires_grad_() for x in crops(3, 17, 8, 5))
    if op == "swav_loss":
        return [features, prototypes], sk.swav_loss(features, prototypes, backend=backend)
    scores = (features @ prototypes.t()).detach().requires_grad_()
    codes = sk.sinkhorn(scores[:2].detach(), backend=backend)
    return [scores], sk.swapped_cross_entropy(scores, codes, backend=backend)


def test_backward_again_on_a_kept_graph(op: str, backend: str, device: str) -> None:
    leaves, loss = leaves_and_loss(op, backend, device)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    wanted = [x.clone() for x in first]
    halves = torch.autograd.grad(0.5 * loss, leaves, retain_graph=True)
    for gradient in first:
        gradient.zero_()  # what was handed out is the caller's
    last = torch.autograd.grad(3 * loss, leaves)
    for gradients, scale in ((halves, 0.5), (last, 3)):
        for got, once in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(got, scale * once)


def test_gradients_add_up_over_passes(op: str, backend: str, device: str) -> None:
    leaves, loss = leaves_and_loss(op, backend, device)
    loss.backward(retain_graph=True)
    once = [x.grad.clone() for x in leaves]
    loss.backward(retain_graph=True)
    (2 * loss).backward()
    for x, wanted in zip(leaves, once, strict=True):
        torch.testing.assert_close(x.grad, 4 * wanted)
