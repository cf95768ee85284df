"""Every Triton kernel compiles for each target as it is shipped: no spills, no TF32, shared memory.

Needs no GPU and is never interpreted: the launchers run on CPU tensors, and what they would launch
on the target is recorded and compiled (tests/compile_only.py).
"""

import functools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from compile_only import SHARED_BYTES, TARGETS, Launch, compile_launch, record_launches
from kernel_list import KERNELS, MODULES

from swav_kernels.triton_kernels import (
    potentials,
    prototype_distillation_loss,
    prototype_scores,
    sinkhorn,
    swapped_cross_entropy,
    swav_loss,
)
from swav_kernels.triton_kernels.stored_loss import fits

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
ASSIGN = (0, 1)
N, K = 512, 3000
MANY = 4096  # samples whose sweeps leave more partial sums than a sweep would fold
LONG_K = 20000  # prototypes of a row that does not fit in one block
PRODUCTS = [  # dtype, D, precision, hard codes
    ("float32", 128, "float32", False),
    ("float32", 256, "float32", False),
    ("float32", 128, "bfloat16", False),
    ("float16", 128, "float32", False),
    ("bfloat16", 128, "float32", False),
    ("bfloat16", 128, "float32", True),
    ("bfloat16", 256, "float32", False),
]


def empty(*shape: int, dtype: str = "float32") -> torch.Tensor:
    """Memory that is never touched."""
    return torch.empty(shape, dtype=getattr(torch, dtype))


def call_on_scores(dtype: str) -> None:
    """Every launcher that reads or writes scores, in each of its forms."""
    for num_prototypes in (K, LONG_K):
        scores = empty(2, N, num_prototypes, dtype=dtype)
        f = empty(2, num_prototypes)
        sinkhorn.potentials(scores, empty(2, N), f[0], 0.05, 2, "float32")
        for hard, normalized in ((False, True), (False, False), (True, True)):
            sinkhorn.codes(scores, f, 0.05, hard, normalized, empty(*scores.shape))
        swapped_cross_entropy.loss_and_gradient(scores, scores, ASSIGN, 0.1, True)
    # sweeps that take the step before them, and those that do not
    for num_rows, num_prototypes in ((N, K), (MANY, K), (N, 8192)):
        scores = empty(2, num_rows, num_prototypes, dtype=dtype)
        sinkhorn.potentials(scores, None, None, 0.05, 4, "bfloat16")
    for iterations in (1, 2):
        sinkhorn.sinkhorn(empty(2, N, K, dtype=dtype), 0.05, iterations, empty(2, N, K))
    sinkhorn.potentials(scores, None, None, 0.05, 1, "float32")
    sinkhorn.column_stats(scores, None, 0.05)
    features, prototypes = empty(N, 128, dtype=dtype), empty(K, 128, dtype=dtype)
    prototype_scores.scores(features, prototypes)
    prototype_scores.gradients(empty(N, K, dtype=dtype), features, prototypes, True, True)


def call_on_features(dtype: str, dim: int, precision: str, hard: bool) -> None:
    """Every launcher of the streamed loss, with all that can be asked for."""
    features, prototypes = empty(4, N, dim, dtype=dtype), empty(K, dim, dtype=dtype)
    swav_loss.loss_and_gradients(
        features, prototypes, empty(2, K), ASSIGN, 0.1, 0.05, hard, precision, True, True, True
    )
    if dim == 128 and not hard:
        swav_loss.potentials(features[:2], prototypes, None, None, 0.05, 2, precision)


def call_on_teacher(dtype: str, dim: int, precision: str, teacher_dim: int) -> None:
    """The launchers of a student and a teacher of other dimensions, crops and rows."""
    prototypes, others = empty(K, dim, dtype=dtype), empty(K, teacher_dim, dtype=dtype)
    for num_crops, assign in ((4, ASSIGN), (1, (-1,))):
        prototype_distillation_loss.loss_and_gradients(
            empty(num_crops, N, dim, dtype=dtype), prototypes,
            empty(len(assign), N, teacher_dim, dtype=dtype), others, empty(len(assign), K),
            empty(N), assign, 0.1, 0.05, precision, True, True,
        )  # fmt: skip


def call_on_stored_scores(dtype: str, dim: int) -> None:
    """The loss of as many samples as make it store its scores."""
    for num_prototypes in (K, 8192):
        features, prototypes = (
            empty(4, MANY, dim, dtype=dtype),
            empty(num_prototypes, dim, dtype=dtype),
        )
        assert fits(features, prototypes, False, "bfloat16")
        for need in (True, False):
            swav_loss.loss_and_gradients(
                features, prototypes, empty(2, num_prototypes), ASSIGN, 0.1, 0.05, False,
                "bfloat16", need, need, False,
            )  # fmt: skip


CALLS = {
    **{f"scores-{d}": functools.partial(call_on_scores, d) for d in ("float32", "bfloat16")},
    **{"-".join(map(str, case)): functools.partial(call_on_features, *case) for case in PRODUCTS},
}
CALLS |= {
    f"stored-{dtype}-{dim}": functools.partial(call_on_stored_scores, dtype, dim)
    for dtype, dim in (("float32", 128), ("float16", 256), ("bfloat16", 128))
}
CALLS |= {
    f"teacher-{'-'.join(map(str, case))}": functools.partial(call_on_teacher, *case)
    for case in (
        ("float32", 128, "float32", 64),
        ("float32", 256, "float32", 256),
        ("float32", 256, "bfloat16", 384),
        ("float16", 128, "float32", 256),
        ("bfloat16", 256, "float32", 256),
    )
}
compiled = functools.cache(compile_launch)  # cases share kernels


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_spills(monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> None:
    launches = record_launches(monkeypatch, MODULES, target, CALLS[name])
    with ThreadPoolExecutor(1) as pool:  # CPython 3.11 parses wrongly in two threads at once
        results = list(pool.map(lambda launch: compiled(launch, target), launches))
    complaints = []
    for launch, result in zip(launches, results, strict=True):
        if result.spilled:
            complaints.append(f"{launch} spills {result.spilled} bytes")
        if result.shared > SHARED_BYTES[target]:
            complaints.append(f"{launch} takes {result.shared} bytes of shared memory")
        if "tf32" in result.assembly:
            complaints.append(f"{launch} multiplies in TF32")
    assert not complaints, "\n".join(complaints)


def test_every_kernel_of_the_package_is_covered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: set[Launch] = set()
    for call in CALLS.values():
        launches.update(record_launches(monkeypatch, MODULES, "sm_90", call))
    assert {launch.name for launch in launches} == KERNELS


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("shape", [(2, 64, 3000), (2, 512, 3000), (2, 512, 300), (8, 64, 4096)])
def test_small_sinkhorns_are_one_launch_more_than_iterations(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], iterations: int
) -> None:
    scores = empty(*shape)

    def launches(call: Callable[[], object]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for launch, count in record_launches(monkeypatch, MODULES, "sm_90", call).items():
            counts[launch.name] += count
        return counts

    put_back = (iterations - 1) // potentials.MOST_STEPS  # f, now and then in a long iteration
    settled = {"_potentials_kernel": put_back} if put_back else {}
    codes = launches(lambda: sinkhorn.sinkhorn(scores, 0.05, iterations, scores))
    assert codes == {"_column_stats_kernel": 1, "_sweep_kernel": iterations, **settled}
    f = launches(lambda: sinkhorn.potentials(scores, None, None, 0.05, iterations, "float32"))
    sweeps = {"_sweep_kernel": iterations - 1} if iterations > 1 else {"_spread_nan_kernel": 1}
    assert f == {"_column_stats_kernel": 1, "_potentials_kernel": 1 + put_back, **sweeps}


# --- the checks are awake ---------------------------------------------------------------------


def test_tf32_is_taken_if_the_user_allows_it_and_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> None:
        prototype_scores.scores(empty(N, 128), empty(K, 128))

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        launch, *_ = record_launches(monkeypatch, MODULES, "sm_90", call)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert "tf32" in compiled(launch, "sm_90").assembly


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_spills_are_seen(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    import toy_kernels

    def call(num_warps: int) -> None:
        matrices = {name: empty(128, 128) for name in ("a_ptr", "b_ptr", "out_ptr")}
        toy_kernels.holds_a_lot[(1,)](**matrices, num_warps=num_warps)

    spilled = []
    for num_warps in (8, 1):
        (launch,) = record_launches(monkeypatch, (), target, functools.partial(call, num_warps))
        spilled.append(compiled(launch, target).spilled)
    assert spilled[0] == 0
    assert spilled[1] > 0
