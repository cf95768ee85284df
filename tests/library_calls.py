"""Sample calls of every op of torch.ops.swav_kernels: layouts, dtypes, empty, with gradients."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from compare import random_codes, strided_layouts, unit_rows
from torch import Tensor

V, B, D, K = 3, 6, 8, 5
Call = tuple[Any, ...]
Layouts = Iterator[tuple[Tensor, ...]]


def in_every_form(*shapes: tuple[int, ...], positive: bool = False) -> Layouts:
    """Tensors of the shapes: contiguous, strided, of half, of mixed dtypes, without rows."""
    make = random_codes if positive else unit_rows
    made = [make(*shape, seed=i).float() for i, shape in enumerate(shapes)]
    yield tuple(made)
    for layouts in zip(*map(strided_layouts, made), strict=True):
        yield tuple(tensor for _, tensor in layouts)
    dtypes = torch.float64, torch.float16, torch.bfloat16
    for dtype in dtypes:
        yield tuple(x.to(dtype) for x in made)
    yield tuple(x.to(dtype) for x, dtype in zip(made, dtypes))  # the shorter of the two
    yield tuple(x.narrow(-2, 0, 0) if x.shape[-2] == B else x for x in made)


def leaves(inputs: tuple[Tensor, ...], grad: tuple[bool, ...]) -> list[Tensor]:
    """The same memory, requiring gradients or not."""
    return [x.detach().requires_grad_(needs) for x, needs in zip(inputs, grad, strict=True)]


GRADS = tuple(itertools.product((False, True), repeat=2))


def prototype_scores() -> Iterator[Call]:
    for shape in ((B, D), (V, B, D)):
        for inputs in in_every_form(shape, (K, D)):
            for grad in GRADS if shape == (B, D) else GRADS[-1:]:
                yield *leaves(inputs, grad), "reference" if grad[0] > grad[1] else None


def prototype_scores_gradients() -> Iterator[Call]:
    for inputs in in_every_form((B, K), (B, D), (K, D)):
        for needed in GRADS:
            yield *inputs, *needed, "reference" if needed[0] > needed[1] else None


def sinkhorn() -> Iterator[Call]:
    yield from _sinkhorn(lambda s, hard, r, w: (s, 3, 0.05, None, hard, r, w))


def sinkhorn_potentials() -> Iterator[Call]:
    yield from _sinkhorn(lambda s, hard, r, w: (s, 4 if hard else 1, 0.05, None, r, w))


def _sinkhorn(begin: Callable[..., Call]) -> Iterator[Call]:
    shares, weights = torch.rand(K) + 0.1, torch.rand(B) + 0.1
    for shape in ((B, K), (2, B, K)):
        for (scores,) in in_every_form(shape):
            rest = None, "float32", False
            for grad in (False, True):
                (s,) = leaves((scores,), (grad,))
                yield *begin(s, grad, None, None), *rest, None
                rows = weights[: s.shape[-2]]
                yield *begin(s, False, shares, rows), *rest, "reference" if grad else None
    yield *begin(torch.rand(B, K), False, None, None), 1.0, "bfloat16", True, None


def swapped_cross_entropy() -> Iterator[Call]:
    forms = in_every_form((V, B, K)), in_every_form((2, B, K), positive=True)
    for (scores,), (codes,) in zip(*forms, strict=True):
        for grad, assign in itertools.product((False, True), ((0, 1), (2, 0))):
            (s,) = leaves((scores,), (grad,))
            yield s, codes, 0.1, list(assign), grad, None
        yield *leaves((scores,), (True,)), codes, 0.2, [0, 1], True, "reference"


def prototype_cross_entropy() -> Iterator[Call]:
    for rows in (B, B - 1):
        forms = in_every_form((rows, K)), in_every_form((rows, K), positive=True)
        for (scores,), (codes,) in zip(*forms, strict=True):
            weights = torch.rand(len(scores))
            for grad in (False, True):
                (s,) = leaves((scores,), (grad,))
                yield s, codes, 0.1, weights if grad else None, grad, None
            yield *leaves((scores,), (True,)), codes, 0.2, None, True, "reference"


def swav_loss() -> Iterator[Call]:
    shares = torch.rand(K) + 0.1
    for inputs in in_every_form((V, B, D), (K, D)):
        acc = torch.float64 if torch.float64 in [x.dtype for x in inputs] else torch.float32
        num_rows = inputs[0].shape[1]  # the telemetry of none is NaN, which opcheck calls different
        for grad in GRADS:
            start = 0.1, 0.05, 3, [0, 1], None, None, None
            has_stats = grad[0] and num_rows > 0
            yield *leaves(inputs, grad), *start, False, None, "float32", has_stats, *grad, None
        z, c = leaves(inputs, (True, True))
        queue = unit_rows(2, 4, D, seed=7).to(z.dtype)
        start = 0.2, 0.1, 1, [2, 0], queue, None, None
        yield z, c, *start, True, shares, "bfloat16", False, True, True, None
        start = 0.2, 0.1, 1, [1, 0], None, torch.zeros(K, dtype=acc), None
        yield z, c, *start, False, None, "float32", num_rows > 0, True, True, "reference"


def prototype_distillation_loss() -> Iterator[Call]:
    weights = torch.rand(B) + 0.1
    for shapes in (((B, D), (B, 4)), ((V, B, D), (2, B, 4))):
        students, teachers = in_every_form(shapes[0], (K, D)), in_every_form(shapes[1], (K, 4))
        for student, teacher in zip(students, teachers, strict=True):
            for grad in GRADS[1:] if len(shapes[0]) == 2 else GRADS[-1:]:
                z, c = leaves(student, grad)
                start = z, c, *teacher, 0.1, 0.07, 2
                yield *start, None, weights[: z.shape[-2]], None, "float32", *grad, None
            acc = (z.sum() + c.sum() + teacher[0].sum() + teacher[1].sum()).dtype
            f = torch.zeros(K, dtype=acc if acc == torch.float64 else torch.float32)
            yield *start, f, None, None, "float32", *grad, "reference"


def swav_potentials() -> Iterator[Call]:
    shares, weights = torch.rand(K) + 0.1, torch.rand(B) + 0.1
    for inputs in in_every_form((2, B, D), (K, D)):
        z, c = leaves(inputs, (True, False))
        queue = unit_rows(2, 4, D, seed=7).to(z.dtype)
        yield z, c, 0.05, 3, None, None, False, None, None, "float32", None
        yield z, c, 0.1, 1, queue, None, True, shares, None, "bfloat16", None
        rows = weights[: z.shape[1]]
        yield *inputs, 0.05, 2, queue, None, False, None, rows, "float32", None
        yield *inputs, 0.05, 3, queue, None, True, shares, rows, "float32", "reference"


SAMPLES: dict[str, Callable[[], Iterator[Call]]] = {
    "prototype_cross_entropy": prototype_cross_entropy,
    "prototype_distillation_loss": prototype_distillation_loss,
    "prototype_scores": prototype_scores,
    "prototype_scores_gradients": prototype_scores_gradients,
    "sinkhorn": sinkhorn,
    "sinkhorn_potentials": sinkhorn_potentials,
    "swapped_cross_entropy": swapped_cross_entropy,
    "swav_loss": swav_loss,
    "swav_potentials": swav_potentials,
}
