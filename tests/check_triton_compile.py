"""Every Triton kernel compiles for each target as it is shipped: no spills, no TF32, shared memory.

Needs no GPU and is never interpreted: the launchers run on CPU tensors, and what they would launch
on the target is recorded and compiled (tests/compile_only.py).

Some float32 kernels still spill, so `pytest` does not collect this file by itself yet: run it by
name, `pytest tests/check_triton_compile.py`. It becomes test_triton_compile.py once it passes.
"""

import functools

import pytest
import torch
from compile_only import SHARED_BYTES, TARGETS, Launch, compile_launch, record_launches
from kernel_list import KERNELS, MODULES

from swav_kernels.triton_kernels import (
    prototype_scores,
    sinkhorn,
    swapped_cross_entropy,
    swav_loss,
)

ASSIGN = (0, 1)
N, K = 512, 3000
LONG_K = 20000  # prototypes of a row that does not fit in one block
PRODUCTS = [  # dtype, D, precision
    ("float32", 128, "float32"),
    ("float32", 256, "float32"),
    ("float32", 128, "bfloat16"),
    ("float16", 128, "float32"),
    ("bfloat16", 128, "float32"),
    ("bfloat16", 256, "float32"),
]


def empty(*shape: int, dtype: str = "float32") -> torch.Tensor:
    """Memory that is never touched."""
    return torch.empty(shape, dtype=getattr(torch, dtype))


def call_on_scores(dtype: str) -> None:
    """Every launcher that reads scores, in each of its forms."""
    for num_problems, num_prototypes in ((2, K), (2, LONG_K)):
        scores = empty(num_problems, N, num_prototypes, dtype=dtype)
        f = empty(num_problems, num_prototypes)
        sinkhorn.potentials(scores, empty(num_problems, N), f[0], 0.05, 2)
        for hard, normalized in ((False, True), (False, False), (True, True)):
            sinkhorn.codes(scores, f, 0.05, hard, normalized, empty(*scores.shape))
        swapped_cross_entropy.loss_and_gradient(scores, scores, ASSIGN, 0.1, True)
    sinkhorn.potentials(scores, None, None, 0.05, 1)


def call_on_features(dtype: str, dim: int, precision: str) -> None:
    """Every launcher that reads features and prototypes, with all that can be asked for."""
    features, prototypes = empty(4, N, dim, dtype=dtype), empty(K, dim, dtype=dtype)
    if precision == "float32":
        prototype_scores.scores(features[0], prototypes)
        d_scores = empty(N, K, dtype=dtype)
        prototype_scores.gradients(d_scores, features[0], prototypes, True, True)
    swav_loss.potentials(features[:2], prototypes, None, None, 0.05, 2, precision)
    for hard in (False, True):
        swav_loss.loss_and_gradients(
            features, prototypes, empty(2, K), ASSIGN, 0.1, 0.05, hard, precision, True, True, True
        )


CALLS = {
    **{f"scores-{d}": functools.partial(call_on_scores, d) for d in ("float32", "bfloat16")},
    **{"-".join(map(str, case)): functools.partial(call_on_features, *case) for case in PRODUCTS},
}
compiled = functools.cache(compile_launch)  # cases share kernels


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CALLS)
def test_compiles_without_spills(monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> None:
    complaints = []
    for launch in record_launches(monkeypatch, MODULES, target, CALLS[name]):
        result = compiled(launch, target)
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


# --- the checks are awake ---------------------------------------------------------------------


def test_tf32_is_taken_if_the_user_allows_it_and_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> None:
        prototype_scores.scores(empty(N, 128), empty(K, 128))

    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    (launch,) = record_launches(monkeypatch, MODULES, "sm_90", call)
    assert "tf32" in compiled(launch, "sm_90").assembly


def test_spills_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_kernels

    def call() -> None:
        matrices = {name: empty(128, 128, dtype="float16") for name in ("a_ptr", "b_ptr")}
        toy_kernels.holds_too_much[(1,)](
            **matrices, out_ptr=empty(128, 128), BLOCK=128, num_warps=1
        )

    for target in TARGETS:
        (launch,) = record_launches(monkeypatch, (), target, call)
        assert compiled(launch, target).spilled > 0
