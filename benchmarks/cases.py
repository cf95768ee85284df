"""What is measured: per op its shapes, inputs, least work, baseline and error bound.

A new op is one function `<op>_case(*sizes)` and one entry in SHAPES. Both sides of a case return
the same outputs, gradients included, so that the check covers everything that is timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

import swav_kernels as sk
from benchmarks import baselines

EPSILON, TEMPERATURE, ITERATIONS, ASSIGN = 0.05, 0.1, 3, (0, 1)  # the paper's setting
DIM = 128
FLOAT = 4  # bytes

# the first of each op is the one of --quick
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "prototype_scores": ((512, 3000), (2048, 3000)),
    "sinkhorn": ((256, 3000), (64, 3000), (512, 300), (512, 3000), (4096, 3000)),
    "swapped_cross_entropy": ((8, 64, 3000), (8, 256, 3000)),
    "swav_loss": ((8, 64, 3000), (8, 256, 3000), (4, 256, 30000)),
}


@dataclass(frozen=True)
class Case:
    """One op at one shape. `inputs` are made on the CPU from a fixed seed."""

    op: str
    shape: str
    inputs: tuple[Tensor, ...]
    run: Callable[..., tuple[Tensor, ...]]  # (*inputs, backend=name)
    official: Callable[..., tuple[Tensor, ...]]  # (*inputs)
    bounds: tuple[Callable[[Tensor], float], ...]  # per output: largest error against float64
    num_bytes: int
    flops: int


def cases(ops: list[str], quick: bool) -> Iterator[Case]:
    """Yield the cases of these ops one by one (the inputs of one case at a time are alive)."""
    makers = {
        "prototype_scores": prototype_scores_case,
        "sinkhorn": sinkhorn_case,
        "swapped_cross_entropy": swapped_cross_entropy_case,
        "swav_loss": swav_loss_case,
    }
    for op in ops:
        for sizes in SHAPES[op][:1] if quick else SHAPES[op]:
            yield makers[op](*sizes)


def prototype_scores_case(num_samples: int, num_prototypes: int) -> Case:
    """[N, D], [K, D] -> scores [N, K]; forward only."""
    return Case(
        op="prototype_scores",
        shape=f"{num_samples}x{num_prototypes}",
        inputs=(_unit_rows(num_samples, DIM), _unit_rows(num_prototypes, DIM, seed=1)),
        run=lambda z, c, backend: (sk.prototype_scores(z, c, backend=backend),),
        official=lambda z, c: (z @ c.t(),),
        bounds=(lambda expected: 2e-6,),
        # z and c read once, scores written once
        num_bytes=FLOAT * (num_samples * DIM + num_prototypes * DIM + num_samples * num_prototypes),
        # a multiply and an add for each of N K D
        flops=2 * num_samples * num_prototypes * DIM,
    )


def sinkhorn_case(num_samples: int, num_prototypes: int) -> Case:
    """[N, K] -> codes [N, K] in fresh memory."""
    scores = _unit_rows(num_samples, DIM) @ _unit_rows(num_prototypes, DIM, seed=1).t()
    rounding = 2.0**-22 * scores.abs().max().item() / EPSILON  # of s / epsilon in float32
    return Case(
        op="sinkhorn",
        shape=f"{num_samples}x{num_prototypes}",
        inputs=(scores,),
        run=lambda s, backend: (sk.sinkhorn(s, ITERATIONS, EPSILON, backend=backend),),
        official=lambda s: (baselines.sinkhorn(s, ITERATIONS, EPSILON),),
        bounds=(lambda expected: 2e-6 + rounding,),
        # T + 1 sweeps read the scores, the last one writes the codes
        num_bytes=FLOAT * (ITERATIONS + 2) * scores.numel(),
        # per score, exp counted as one: scale, exp, add; T - 1 times scale, add f, exp, row sum,
        # multiply-add into the column sums; at last scale, add f, exp, row sum, divide
        flops=(3 + 6 * (ITERATIONS - 1) + 5) * scores.numel(),
    )


def swapped_cross_entropy_case(num_crops: int, num_samples: int, num_prototypes: int) -> Case:
    """[V, B, K], [A, B, K] -> loss, d_scores [V, B, K]."""
    features = _unit_rows(num_crops * num_samples, DIM)
    scores = (features @ _unit_rows(num_prototypes, DIM, seed=1).t()).unflatten(0, (num_crops, -1))
    codes = torch.stack([baselines.sinkhorn(scores[crop], ITERATIONS, EPSILON) for crop in ASSIGN])
    official = partial(baselines.swapped_cross_entropy, temperature=TEMPERATURE, assign=ASSIGN)
    num_pairs = len(ASSIGN) * (num_crops - 1)
    size = num_samples * num_prototypes
    return Case(
        op="swapped_cross_entropy",
        shape=f"{num_crops}x{num_samples}x{num_prototypes}",
        inputs=(scores.requires_grad_(), codes),
        run=lambda s, q, backend: _with_gradients(
            sk.swapped_cross_entropy(s, q, TEMPERATURE, assign=ASSIGN, backend=backend), s
        ),
        official=lambda s, q: _with_gradients(official(s, q), s),
        bounds=(_loss_bound, _gradient_bound),
        # scores and codes read once, d_scores written once
        num_bytes=FLOAT * (2 * num_crops + len(ASSIGN)) * size,
        # per score: scale, exp, sum, then p times its weight; per pair: one multiply-add of q s
        # and one subtraction of q
        flops=(4 * num_crops + 3 * num_pairs) * size,
    )


def swav_loss_case(num_crops: int, num_samples: int, num_prototypes: int) -> Case:
    """[V, B, D], [K, D] -> loss, d_features [V, B, D], d_prototypes [K, D]."""
    features = _unit_rows(num_crops * num_samples, DIM).unflatten(0, (num_crops, -1))
    setting = {
        "temperature": TEMPERATURE,
        "epsilon": EPSILON,
        "iterations": ITERATIONS,
        "assign": ASSIGN,
    }
    return Case(
        op="swav_loss",
        shape=f"{num_crops}x{num_samples}x{num_prototypes}",
        inputs=(
            features.requires_grad_(),
            _unit_rows(num_prototypes, DIM, seed=1).requires_grad_(),
        ),
        run=lambda z, c, backend: _with_gradients(
            sk.swav_loss(z, c, backend=backend, **setting), z, c
        ),
        official=lambda z, c: _with_gradients(baselines.swav_loss(z, c, **setting), z, c),
        bounds=(_loss_bound, _gradient_bound, _gradient_bound),
        # z and c read once, their gradients written once: the scores need never be stored
        num_bytes=FLOAT * 2 * DIM * (num_crops * num_samples + num_prototypes),
        # three matrix products (scores, d_features, d_prototypes) of V B K D multiply-adds
        flops=6 * num_crops * num_samples * num_prototypes * DIM,
    )


def _unit_rows(num_rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, dim, generator=generator), dim=1)


def _with_gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


def _loss_bound(expected: Tensor) -> float:
    return 1e-6 * max(expected.abs().item(), 1 / (10 * TEMPERATURE))


def _gradient_bound(expected: Tensor) -> float:
    return (2e-6 + 1e-7 / EPSILON) * expected.abs().max().item()
