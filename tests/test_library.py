"""The ops as torch's own: what opcheck asks of them, and no gradient that is silently missing."""

import pytest
import torch
from compare import crops
from depth import count
from library_calls import SAMPLES

from swav_kernels import library

OPS = torch.ops.swav_kernels


def test_every_op_has_40_samples() -> None:
    registered = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("swav_kernels::")
    }
    assert registered == SAMPLES.keys()
    assert registered >= set(library.OPS)
    for name, make in SAMPLES.items():
        assert len(list(make())) >= 40, name


@pytest.mark.heavy
@pytest.mark.parametrize("name", SAMPLES)
def test_what_torch_asks_of_an_op(name: str) -> None:
    op = getattr(OPS, name).default
    for call in list(SAMPLES[name]())[:: count(9, 1)]:
        torch.library.opcheck(op, call)


def test_a_gradient_that_was_not_asked_for_is_refused_and_not_none() -> None:
    scores = crops(3, 6, 8, 5)[0].requires_grad_()
    codes = torch.full((2, 6, 8), 1 / 8)
    loss, _ = OPS.swapped_cross_entropy(scores, codes, 0.1, [0, 1], False, None)
    with pytest.raises(RuntimeError, match=r"its need_ argument was False; call swav_kernels\."):
        loss.backward()


def test_the_gradient_of_a_gradient_is_refused_and_not_zero() -> None:
    features, prototypes = (x.requires_grad_() for x in crops(3, 6, 8, 5))
    scores = OPS.prototype_scores(features, prototypes, None)
    codes = torch.full((2, 6, 5), 1 / 5)
    loss, _ = OPS.swapped_cross_entropy(scores, codes, 0.1, [0, 1], True, None)
    for value in (scores.sum(), loss):
        with pytest.raises(RuntimeError, match=r"no gradient of a gradient .* call swav_kernels\."):
            torch.autograd.grad(value, features, create_graph=True)
