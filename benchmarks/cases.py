"""What is measured: per op its shapes, inputs, ways to call it, least work and error bounds.

A new op is one function `<op>_case(shape, device)`, one entry in SHAPES and one in `make`.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

import swav_kernels as sk
from benchmarks import oracle
from benchmarks.baselines import official
from benchmarks.case import (
    ASSIGN,
    BF16_CODES_BOUND,
    BF16_GRADIENT_BOUND,
    BF16_LOSS_BOUND,
    EPSILON,
    FLOAT,
    GRADIENT_BOUND,
    ITERATIONS,
    LOSS_BOUND,
    TEMPERATURE,
    Bound,
    Call,
    Case,
    Inputs,
    Shape,
    Variant,
    Work,
    unit_rows,
)
from benchmarks.distillation import prototype_distillation_loss_case

GROUPS = ("small", "paper", "large")
SWEEP = tuple(2**power for power in range(10, 19, 2))  # K = 1,024 to 262,144

# the first of each op is the one of --quick; 1x2 and 2x1x2 cost what the host costs
SHAPES: dict[str, tuple[Shape, ...]] = {
    "prototype_scores": (
        Shape((512, 3000), "paper"),
        Shape((1, 2), "small", dim=4),
        Shape((32, 60), "small", dim=64),
        Shape((2048, 3000), "paper"),
        Shape((512, 3000), "paper", dim=256),
    ),
    "sinkhorn": (
        Shape((256, 3000), "paper"),
        Shape((1, 2), "small"),
        Shape((32, 60), "small"),
        Shape((512, 300), "small"),
        Shape((64, 3000), "paper"),
        Shape((512, 3000), "paper"),
        Shape((4096, 3000), "paper"),
        Shape((4096, 65536), "large"),
        Shape((8192, 65536), "large", gpu_only=True),
        Shape((32768, 131072), "large", gpu_only=True),
        *(Shape((256, k), "sweep") for k in SWEEP),
    ),
    "swapped_cross_entropy": (
        Shape((8, 64, 3000), "paper"),
        Shape((2, 1, 2), "small", gradient=False),
        Shape((2, 32, 60), "small", gradient=False),
        Shape((2, 32, 60), "small"),
        Shape((8, 256, 3000), "paper"),
        Shape((4, 256, 30000), "large"),
    ),
    "swav_loss": (
        Shape((8, 64, 3000), "paper"),
        Shape((2, 1, 2), "small", dim=4, gradient=False),
        Shape((2, 32, 60), "small", dim=64, gradient=False),
        Shape((2, 32, 60), "small", dim=64),
        Shape((8, 256, 3000), "paper"),
        Shape((8, 64, 3000), "paper", dim=256),
        Shape((8, 256, 3000), "paper", dim=256),
        Shape((4, 256, 30000), "large"),
        Shape((4, 256, 30000), "large", dim=256),
        Shape((2, 8192, 65536), "large", gpu_only=True),
        Shape((2, 2500, 131072), "large", dim=256, gpu_only=True),  # as DINO and iBOT have it
        *(Shape((4, 64, k), "sweep") for k in SWEEP),
    ),
    "prototype_distillation_loss": (
        Shape((256, 4096), "paper", dim=256),
        Shape((1, 2), "small", dim=4, gradient=False),
        Shape((32, 60), "small", dim=64),
        Shape((512, 16384), "large", dim=256),
        Shape((2500, 131072), "large", dim=256, gpu_only=True),  # DINOv2's prototypes
    ),
}


def select(ops: Sequence[str], groups: Sequence[str], quick: bool) -> Iterator[tuple[str, Shape]]:
    """Yield the shapes of these ops that belong to the groups, or the first of each op."""
    for op in ops:
        if quick:
            yield op, SHAPES[op][0]
        else:
            yield from ((op, shape) for shape in SHAPES[op] if shape.group in groups)


def make(op: str, shape: Shape, device: torch.device) -> Case:
    """Return the case, its inputs made on the device from a fixed seed."""
    makers: dict[str, Callable[[Shape, torch.device], Case]] = {
        "prototype_scores": prototype_scores_case,
        "sinkhorn": sinkhorn_case,
        "swapped_cross_entropy": swapped_cross_entropy_case,
        "swav_loss": swav_loss_case,
        "prototype_distillation_loss": prototype_distillation_loss_case,
    }
    return makers[op](shape, device)


def prototype_scores_case(shape: Shape, device: torch.device) -> Case:
    """[N, D], [K, D] -> scores [N, K]; forward only."""
    (n, k), dim = shape.sizes, shape.dim
    size = FLOAT * (n * dim + k * dim + n * k)
    work = Work(
        bytes=size,  # z and c read once, scores written once
        flops=2 * n * k * dim,  # a multiply and an add for each of N K D
        matrix_flops=2 * n * k * dim,
        exps=0,
        working_set=size,
    )

    def prepare(inputs: Inputs, backend: str) -> Call:
        z, c = inputs["features"], inputs["prototypes"]
        return lambda: (sk.prototype_scores(z, c, backend=backend),)

    return Case(
        "prototype_scores",
        shape,
        _features_and_prototypes(shape, device),
        lambda x: oracle.prototype_scores(x["features"], x["prototypes"]),
        (Variant("float32", prepare, work, (Bound(absolute=2e-6),), extra_bytes=4 * n * k),),
    )


def sinkhorn_case(shape: Shape, device: torch.device) -> Case:
    """[N, K] -> codes [N, K] in fresh memory or in memory that is reused, or potentials [K]."""
    inputs = _features_and_prototypes(shape, device)
    scores = inputs["scores"] = inputs["features"] @ inputs["prototypes"].t()
    size, t = scores.numel(), ITERATIONS
    codes_work = Work(
        bytes=(t + 2) * FLOAT * size,  # T + 1 sweeps read the scores, the last writes the codes
        # the linear form, per score: scale, exp, add; T - 1 times a multiply-add of the row and
        # one of the column; at last a multiply-add of the row and two multiplications
        flops=(3 + 4 * (t - 1) + 4) * size,
        matrix_flops=0,
        exps=size,  # kept or not, one is needed
        working_set=2 * FLOAT * size,
    )
    f_work = Work(
        bytes=t * FLOAT * size,  # T sweeps
        flops=(3 + 4 * (t - 1)) * size,  # without the last step of the row and the codes
        matrix_flops=0,
        exps=size,
        working_set=FLOAT * size,
    )
    f_bf16_work = Work(f_work.bytes // 2, f_work.flops, 0, size, f_work.working_set // 2)
    low, high = torch.aminmax(scores)  # without a copy
    rounding = 2.0**-22 * max(-low.item(), high.item()) / EPSILON  # of s / epsilon in float32
    bound = (Bound(absolute=2e-6 + rounding),)

    def codes(inputs: Inputs, backend: str) -> Call:
        s = inputs["scores"]
        return lambda: (sk.sinkhorn(s, ITERATIONS, EPSILON, backend=backend),)

    def codes_out(inputs: Inputs, backend: str) -> Call:
        s = inputs["scores"]
        out = torch.zeros_like(s)
        return lambda: (sk.sinkhorn(s, ITERATIONS, EPSILON, out=out, backend=backend),)

    def potentials(precision: str) -> Callable[[Inputs, str], Call]:
        def prepare(inputs: Inputs, backend: str) -> Call:
            s, f = inputs["scores"], sk.sinkhorn_potentials
            return lambda: (f(s, ITERATIONS, EPSILON, precision=precision, backend=backend),)

        return prepare

    float32, bf16 = potentials("float32"), potentials("bfloat16")
    variants = [
        Variant("codes", codes, codes_work, bound, extra_bytes=FLOAT * size),
        Variant("codes, out=", codes_out, codes_work, bound, extra_bytes=FLOAT * size),
        Variant("potentials", float32, f_work, bound, extra_bytes=FLOAT * size),
        Variant("potentials bf16", bf16, f_work, (BF16_CODES_BOUND,), extra_bytes=2 * size),
    ]
    if device.type != "cpu":  # what a network under autocast hands over; exact for these scores
        variants.append(
            Variant("bf16 scores, f", float32, f_bf16_work, bound, dtype=torch.bfloat16)
        )
    return Case(
        "sinkhorn", shape, inputs, lambda x: oracle.SinkhornOracle.of(x["scores"]), tuple(variants)
    )


def swapped_cross_entropy_case(shape: Shape, device: torch.device) -> Case:
    """[V, B, K], [A, B, K] -> loss, d_scores [V, B, K]."""
    inputs = _features_and_prototypes(shape, device)
    scores = inputs["features"] @ inputs["prototypes"].t()
    codes = torch.stack([official.sinkhorn(scores[crop], ITERATIONS, EPSILON) for crop in ASSIGN])
    num_crops, size = shape.num_crops, shape.matrix_bytes // FLOAT
    # scores and codes read once, d_scores written once
    num_bytes = FLOAT * size * (num_crops * (2 if shape.gradient else 1) + len(ASSIGN))
    work = Work(
        bytes=num_bytes,
        # per score: scale, exp, sum, then p times its weight; per pair: one multiply-add of q s
        # and one subtraction of q
        flops=(4 * num_crops + 3 * shape.num_pairs) * size,
        matrix_flops=0,
        exps=num_crops * size,
        working_set=num_bytes,
    )

    def prepare(inputs: Inputs, backend: str) -> Call:
        s, q = inputs["scores"], inputs["codes"]
        return official.with_gradients(
            lambda s: sk.swapped_cross_entropy(s, q, TEMPERATURE, assign=ASSIGN, backend=backend),
            (s,),
            shape.gradient,
        )

    bounds = (LOSS_BOUND, GRADIENT_BOUND) if shape.gradient else (LOSS_BOUND,)
    extra = num_crops * shape.matrix_bytes
    return Case(
        "swapped_cross_entropy",
        shape,
        {"scores": scores, "codes": codes},
        lambda x: oracle.swapped_cross_entropy(x["scores"], x["codes"], shape.gradient),
        (Variant("float32", prepare, work, bounds, extra_bytes=extra),),
    )


def swav_loss_case(shape: Shape, device: torch.device) -> Case:
    """[V, B, D], [K, D] -> loss, d_features [V, B, D], d_prototypes [K, D]."""
    num_crops, num_samples, k = shape.sizes
    rows = num_crops * num_samples
    # z and c read once, their gradients written once: the scores need never be stored
    numbers = shape.dim * (rows + k) * (2 if shape.gradient else 1)
    # matrix products of V B K D multiply-adds: scores, d_features, d_prototypes
    flops = (3 if shape.gradient else 1) * 2 * rows * k * shape.dim
    exps = rows * k  # that of a code is the square of the prediction's, as epsilon = tau / 2

    def work(width: int) -> Work:
        return Work(width * numbers, flops + exps, flops, exps, width * numbers)

    def precision(name: str) -> Callable[[Inputs, str], Call]:
        def prepare(inputs: Inputs, backend: str) -> Call:
            return official.with_gradients(
                lambda z, c: sk.swav_loss(
                    z, c, temperature=TEMPERATURE, epsilon=EPSILON, iterations=ITERATIONS,
                    assign=ASSIGN, precision=name, backend=backend,
                ),
                (inputs["features"], inputs["prototypes"]),
                shape.gradient,
            )  # fmt: skip

        return prepare

    count = 3 if shape.gradient else 1
    bounds = (LOSS_BOUND, GRADIENT_BOUND, GRADIENT_BOUND)[:count]
    bf16_bounds = (BF16_LOSS_BOUND, BF16_GRADIENT_BOUND, BF16_GRADIENT_BOUND)[:count]
    bf16 = torch.bfloat16
    variants = [
        Variant("float32", precision("float32"), work(4), bounds),
        Variant("bfloat16", precision("bfloat16"), work(4), bf16_bounds, matrix_dtype=bf16),
    ]
    if device.type != "cpu":
        variants.append(
            Variant("bf16 features", precision("float32"), work(2), bf16_bounds, bf16, bf16)
        )
    return Case(
        "swav_loss",
        shape,
        _features_and_prototypes(shape, device),
        lambda x: oracle.swav_loss(x["features"], x["prototypes"], shape.gradient),
        tuple(variants),
    )


def _features_and_prototypes(shape: Shape, device: torch.device) -> Inputs:
    """L2-normalised rows, drawn on the CPU so that every device has the same ones."""
    return {
        "features": unit_rows(0, *shape.sizes[:-1], shape.dim).to(device),
        "prototypes": unit_rows(1, shape.sizes[-1], shape.dim).to(device),
    }
