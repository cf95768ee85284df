"""The case of `prototype_distillation_loss`: a student and a teacher of K prototypes each."""

from collections.abc import Callable

import torch

import swav_kernels as sk
from benchmarks import oracle
from benchmarks.baselines import official
from benchmarks.case import (
    BF16_GRADIENT_BOUND,
    BF16_LOSS_BOUND,
    EPSILON,
    GRADIENT_BOUND,
    ITERATIONS,
    LOSS_BOUND,
    TEMPERATURE,
    Call,
    Case,
    Inputs,
    Shape,
    Variant,
    Work,
    unit_rows,
)


def prototype_distillation_loss_case(shape: Shape, device: torch.device) -> Case:
    """[N, D], [K, D] and the teacher's -> loss, d_features [N, D], d_prototypes [K, D]."""
    (n, k), dim = shape.sizes, shape.dim
    # both sides' features and prototypes read once, the student's gradients written once
    numbers = dim * (n + k) * (3 if shape.gradient else 2)
    # matrix products of N K D multiply-adds: scores of both, d_features, d_prototypes
    flops = (4 if shape.gradient else 2) * 2 * n * k * dim
    exps = 2 * n * k
    work = Work(4 * numbers, flops + exps, flops, exps, 4 * numbers)

    def precision(name: str) -> Callable[[Inputs, str], Call]:
        def prepare(x: Inputs, backend: str) -> Call:
            return official.with_gradients(
                lambda z, c: sk.prototype_distillation_loss(
                    z, c, x["teacher_features"], x["teacher_prototypes"], temperature=TEMPERATURE,
                    epsilon=EPSILON, iterations=ITERATIONS, precision=name, backend=backend,
                ),
                (x["features"], x["prototypes"]),
                shape.gradient,
            )  # fmt: skip

        return prepare

    count = 3 if shape.gradient else 1
    bounds = (LOSS_BOUND, GRADIENT_BOUND, GRADIENT_BOUND)[:count]
    bf16_bounds = (BF16_LOSS_BOUND, BF16_GRADIENT_BOUND, BF16_GRADIENT_BOUND)[:count]
    names = ("features", "prototypes", "teacher_features", "teacher_prototypes")
    return Case(
        "prototype_distillation_loss",
        shape,
        {
            name: unit_rows(seed, k if "prototypes" in name else n, dim).to(device)
            for seed, name in enumerate(names)
        },
        lambda x: oracle.prototype_distillation_loss(*(x[name] for name in names), shape.gradient),
        (
            Variant("float32", precision("float32"), work, bounds),
            Variant(
                "bfloat16", precision("bfloat16"), work, bf16_bounds, matrix_dtype=torch.bfloat16
            ),
        ),
    )
