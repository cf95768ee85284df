"""The field's Sinkhorns from their formulas, in float64, and how our adapters are called.

Rows are samples here; an adapter that takes [K, N] is given the transpose.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from swav_kernels.compat import bolts, capi, dino, lightly, mmpretrain, official, solo_learn, vissl

EPSILON = 0.05


class Drop(NamedTuple):
    """An adapter on scores [N, K] and T, and what it should give for all ranks' scores."""

    call: Callable[[Tensor, int], Tensor]
    oracle: Callable[[Tensor, int], Tensor]


# --- oracles ----------------------------------------------------------------------------------


def shares_in_turn(scores: Tensor, iterations: int) -> Tensor:
    """Official SwAV, lightly, solo-learn, mmpretrain, DINO: Q sums to 1 in all, codes are N Q."""
    num_samples, num_prototypes = scores.shape
    q = (scores.double() / EPSILON).exp()
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(0) / num_prototypes
        q = q / q.sum(1, keepdim=True) / num_samples
    return q * num_samples


def scaled(exponentials: Tensor, iterations: int, shares: Tensor | None = None) -> Tensor:
    """VISSL and bolts: columns scaled to their shares r, then samples to 1 / N, in the end to 1."""
    num_samples, num_prototypes = exponentials.shape
    q = exponentials.double()
    r = torch.ones(num_prototypes).double() if shares is None else shares.double()
    for _ in range(iterations):
        q = q * (r / r.sum() / q.sum(0))
        q = q * (1 / num_samples / q.sum(1, keepdim=True))
    return q / q.sum(1, keepdim=True)


def scaled_scores(scores: Tensor, iterations: int) -> Tensor:
    return scaled((scores.double() / EPSILON).exp(), iterations)


def power_law(scores: Tensor, iterations: int) -> Tensor:
    shares = torch.tensor([1 / (k + 1) ** 0.7 for k in range(scores.shape[1])])
    return scaled((scores.double() / EPSILON).exp(), iterations, shares)


def hard(scores: Tensor, iterations: int) -> Tensor:
    codes = scaled_scores(scores, iterations)
    return torch.nn.functional.one_hot(codes.argmax(1), scores.shape[1]).double()


def of_probabilities(scores: Tensor, iterations: int) -> Tensor:
    """MSN: samples' softmax first, which is not the Sinkhorn of the scores."""
    probabilities = (scores.double() / EPSILON).softmax(1)
    return scaled(probabilities, iterations) if iterations else probabilities


def with_eps(scores: Tensor, iterations: int, eps: float = 1e-8, largest: float = 50.0) -> Tensor:
    """CAPI: a shift per prototype, eps in every denominator; no iterations leave exponentials."""
    logits = scores.double() / EPSILON
    q = (logits - logits.amax(-2, keepdim=True) + largest).exp()
    for _ in range(iterations):
        q = q / (q.sum(-2, keepdim=True) + eps)
        q = q / (q.sum(-1, keepdim=True) + eps)
    return q


# --- how ours is called -----------------------------------------------------------------------


def exponentials(scores: Tensor) -> Tensor:
    """[N, K] -> Q [K, N]; one shift for all ranks, as VISSL takes its reduced maximum."""
    return (scores / EPSILON - 1 / EPSILON).exp().t()


def vissl_codes(scores: Tensor, iterations: int, is_hard: bool = False) -> Tensor:
    return vissl.distributed_sinkhornknopp(
        Q=exponentials(scores), num_iter=iterations, hard_assignment=torch.tensor([is_hard]),
        world_size=1, use_double_prec=False, use_gpu=False,
    )  # fmt: skip


def vissl_power_law(scores: Tensor, iterations: int) -> Tensor:
    return vissl.distributed_sinkhorn_powerlaw(
        Q=exponentials(scores), hard_assignment=False, world_size=1, num_iter=iterations,
        use_gpu=False, use_double_prec=False, powerlaw=0.7,
    )  # fmt: skip


def capi_codes(scores: Tensor, iterations: int, strict: bool = True) -> Tensor:
    return capi.sinkhorn_knopp(scores / EPSILON, n_iterations=iterations, strict=strict)


def lightly_capi_codes(scores: Tensor, iterations: int) -> Tensor:
    logits = (scores / EPSILON).unsqueeze(1)  # one position
    return lightly.capi_sinkhorn_knopp(logits, iterations, True, strict=True).squeeze(1)


# sums over all ranks, unless its name says otherwise
DROPS = {
    "official": Drop(
        lambda s, t: official.distributed_sinkhorn(s, sinkhorn_iterations=t), shares_in_turn
    ),
    "mmpretrain": Drop(
        lambda s, t: mmpretrain.distributed_sinkhorn(s, t, 1, EPSILON), shares_in_turn
    ),
    "solo_learn": Drop(lambda s, t: solo_learn.SinkhornKnopp(t, EPSILON, 1)(s), shares_in_turn),
    "lightly": Drop(lambda s, t: lightly.sinkhorn(s, t, EPSILON, True), shares_in_turn),
    "dino": Drop(
        lambda s, t: dino.sinkhorn_knopp_teacher(None, s, EPSILON, n_iterations=t), shares_in_turn
    ),
    "ibot": Drop(
        lambda s, t: dino.ibot_sinkhorn_knopp_teacher(
            None, s, EPSILON, n_masked_patches_tensor=torch.tensor(len(s)), n_iterations=t
        ),
        shares_in_turn,
    ),
    "dinov3 module": Drop(
        lambda s, t: dino.SinkhornKnoppTeacher()(s, EPSILON, torch.tensor(len(s)), n_iterations=t),
        shares_in_turn,
    ),
    "msn": Drop(
        lambda s, t: lightly.msn_sinkhorn((s / EPSILON).softmax(1), t, True), of_probabilities
    ),
    "vissl": Drop(vissl_codes, scaled_scores),
    "vissl hard": Drop(lambda s, t: vissl_codes(s, t, True), hard),
    "vissl power law": Drop(vissl_power_law, power_law),
    "bolts distributed": Drop(
        lambda s, t: bolts.distributed_sinkhorn(None, exponentials(s), t), scaled_scores
    ),
    "capi strict": Drop(capi_codes, with_eps),
    "capi": Drop(
        lambda s, t: capi_codes(s, t, False),
        lambda s, t: scaled_scores(s, t) if t else with_eps(s, t),
    ),
    "lightly capi strict": Drop(lightly_capi_codes, lambda s, t: with_eps(s, t, largest=0.0)),
}
ALONE = {  # these never look at other ranks
    "lightly": Drop(lambda s, t: lightly.sinkhorn(s, iterations=t), shares_in_turn),
    "msn": Drop(lambda s, t: lightly.msn_sinkhorn((s / EPSILON).softmax(1), t), of_probabilities),
    "bolts": Drop(lambda s, t: bolts.sinkhorn(None, q=exponentials(s), num_iters=t), scaled_scores),
    "lightly capi": Drop(
        lambda s, t: lightly.capi_sinkhorn_knopp((s / EPSILON).unsqueeze(1), t).squeeze(1),
        lambda s, t: scaled_scores(s, t) if t else with_eps(s, t, largest=0.0),
    ),
}
