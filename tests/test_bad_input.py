"""A caller's mistakes: one clear error each, that names the op and the argument."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import zeros

import swav_kernels as sk

NAN = float("nan")
ELSEWHERE = {"device": "meta"}
INTEGER = torch.int64
S, Z, C, Q = zeros(4, 3), zeros(2, 4, 8), zeros(3, 8), zeros(2, 4, 3)

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {}


def bad(
    op: Callable[..., Any], label: str, error: type[Exception], message: str, *args: Any, **kw: Any
) -> None:
    """Add a case: op(*args, **kw) raises the error, with the op's name and then the message."""
    name = op.__name__
    CASES[f"{name}: {label}"] = (functools.partial(op, *args, **kw), error, f"^{name}: .*{message}")


for op, inputs in (
    (sk.sinkhorn, (S,)),
    (sk.sinkhorn_potentials, (S,)),
    (sk.swav_loss, (Z, C)),
    (sk.swav_potentials, (Z, C)),
):
    for label, value in (("0", 0), ("negative", -0.05), ("NaN", NAN), ("1e-31", 1e-31)):
        bad(op, f"epsilon {label}", ValueError, "epsilon", *inputs, epsilon=value)
    bad(op, "epsilon infinite", ValueError, "epsilon", *inputs, epsilon=float("inf"))
    bad(op, "epsilon 1e31", ValueError, "epsilon.*1e.30", *inputs, epsilon=1e31)
    bad(op, "epsilon 10**400", ValueError, "epsilon", *inputs, epsilon=10**400)
    bad(op, "backend a list", ValueError, "backend", *inputs, backend=["cpu"])
    bad(op, "group a name", TypeError, "group.*WORLD", *inputs, group="world")
    bad(op, "float8", TypeError, "float8", inputs[0].to(torch.float8_e4m3fn), *inputs[1:])
    bad(op, "epsilon text", TypeError, "epsilon", *inputs, epsilon="0.05")
    bad(op, "iterations negative", ValueError, "iterations", *inputs, iterations=-1)
    bad(op, "iterations fractional", TypeError, "iterations", *inputs, iterations=1.5)
    bad(op, "precision unknown", ValueError, "precision.*tf32", *inputs, precision="tf32")
    bad(op, "backend unknown", ValueError, "cqu.*did you mean 'cpu'", *inputs, backend="cqu")
    weights = "prototype_weights"
    bad(op, f"{weights} too many", ValueError, weights, *inputs, prototype_weights=zeros(4))
    bad(op, f"{weights} 2-d", ValueError, weights, *inputs, prototype_weights=zeros(1, 3))
    bad(op, f"{weights} integer", TypeError, weights, *inputs, prototype_weights=S[0].long())
    bad(op, f"{weights} a list", TypeError, weights, *inputs, prototype_weights=[1, 1, 1])
    elsewhere = zeros(3, **ELSEWHERE)
    bad(op, f"{weights} elsewhere", ValueError, weights, *inputs, prototype_weights=elsewhere)
    if op is not sk.sinkhorn:
        bad(op, "iterations 0", ValueError, "iterations", *inputs, iterations=0)

for op in (sk.sinkhorn, sk.sinkhorn_potentials):
    bad(op, "1-d", ValueError, "scores", zeros(3))
    bad(op, "4-d", ValueError, "scores", zeros(1, 2, 4, 3))
    bad(op, "no prototypes", ValueError, "scores", zeros(4, 0))
    bad(op, "integer", TypeError, "scores.*float", S.long())
    bad(op, "bool", TypeError, "scores", S.bool())
    bad(op, "complex", TypeError, "scores", zeros(4, 3, dtype=torch.complex64))
    bad(op, "no tensor", TypeError, "scores", [[0.0]])
    bad(op, "sparse", TypeError, "scores", S.to_sparse())
    weights = "sample_weights"
    bad(op, f"{weights} too few", ValueError, weights, S, sample_weights=zeros(3))
    bad(op, f"{weights} of A", ValueError, weights, zeros(2, 4, 3), sample_weights=zeros(3, 4))
    bad(op, f"{weights} integer", TypeError, weights, S, sample_weights=zeros(4, dtype=INTEGER))
    bad(op, f"{weights} elsewhere", ValueError, weights, S, sample_weights=zeros(4, **ELSEWHERE))
    bad(op, "score_bound negative", ValueError, "score_bound", S, score_bound=-1.0)
    bad(op, "score_bound NaN", ValueError, "score_bound", S, score_bound=NAN)
    bad(op, "NaN", ValueError, "scores.*row 0", torch.full((4, 3), NAN), check_finite=True)

bad(sk.sinkhorn, "out of another shape", ValueError, "out", S, out=zeros(3, 4))
bad(sk.sinkhorn, "out of another dtype", ValueError, "out.*float32", S, out=S.double())
bad(sk.sinkhorn, "half out", ValueError, "out.*float32", S.half(), out=S.half())
bad(sk.sinkhorn, "out elsewhere", ValueError, "out", S, out=zeros(4, 3, **ELSEWHERE))
bad(sk.sinkhorn, "out with gaps", ValueError, "out.*contiguous", S, out=zeros(4, 6)[:, ::2])
shared = zeros(5, 3)
bad(sk.sinkhorn, "out in part the scores", ValueError, "out", shared[:4], out=shared[1:])

op = sk.prototype_scores
bad(op, "D differs", ValueError, "features.*8", zeros(4, 7), C)
bad(op, "no dimension", ValueError, "features", zeros(()), C)
bad(op, "prototypes 1-d", ValueError, "prototypes", Z, zeros(8))
bad(op, "integer features", TypeError, "features.*float", Z.long(), C)
bad(op, "integer prototypes", TypeError, "prototypes", Z, C.int())
bad(op, "elsewhere", ValueError, "prototypes.*meta", Z, zeros(3, 8, **ELSEWHERE))
bad(op, "backend unknown", ValueError, "'triton'", Z, C, backend="tritn")

op = sk.swapped_cross_entropy
bad(op, "scores 2-d", ValueError, "scores", S, Q)
bad(op, "codes 2-d", ValueError, "codes", Q, S)
bad(op, "K differs", ValueError, "codes", Q, zeros(2, 4, 5))
bad(op, "B differs", ValueError, "codes", Q, zeros(2, 5, 3))
bad(op, "codes for another assign", ValueError, "codes", Q, Q, assign=(0,))
bad(op, "integer scores", TypeError, "scores", Q.long(), Q)
bad(op, "integer codes", TypeError, "codes", Q, Q.long())
bad(op, "elsewhere", ValueError, "codes.*meta", Q, zeros(2, 4, 3, **ELSEWHERE))
bad(op, "temperature 0", ValueError, "temperature", Q, Q, 0.0)
bad(op, "temperature NaN", ValueError, "temperature", Q, Q, NAN)
bad(op, "no prototypes", ValueError, "scores", zeros(2, 4, 0), zeros(2, 4, 0))
bad(op, "one crop", ValueError, "2 crops", Q[:1], Q[:1], assign=(0,))
bad(op, "backend unknown", ValueError, "'reference'", Q, Q, backend="refrence")

op = sk.swav_loss
bad(op, "features 2-d", ValueError, "features", zeros(4, 8), C)
bad(op, "one crop", ValueError, "2 crops", zeros(1, 4, 8), C)
bad(op, "prototypes 3-d", ValueError, "prototypes", Z, Z)
bad(op, "D differs", ValueError, "features", Z, zeros(3, 7))
bad(op, "no prototypes", ValueError, "prototypes", Z, zeros(0, 8))
bad(op, "integer features", TypeError, "features", Z.long(), C)
bad(op, "prototypes elsewhere", ValueError, "prototypes", Z, zeros(3, 8, **ELSEWHERE))
bad(op, "temperature negative", ValueError, "temperature", Z, C, temperature=-1)
bad(op, "queue of another A", ValueError, "queue", Z, C, queue=zeros(1, 5, 8))
bad(op, "queue of another D", ValueError, "queue", Z, C, queue=zeros(2, 5, 7))
bad(op, "queue 2-d", ValueError, "queue", Z, C, queue=zeros(5, 8))
bad(op, "queue integer", TypeError, "queue", Z, C, queue=zeros(2, 5, 8, dtype=INTEGER))
bad(op, "queue elsewhere", ValueError, "queue", Z, C, queue=zeros(2, 5, 8, **ELSEWHERE))
potentials, f = "potentials", zeros(2, 3)
bad(op, "potentials of another K", ValueError, potentials, Z, C, potentials=zeros(2, 4))
bad(op, "potentials of another A", ValueError, potentials, Z, C, potentials=zeros(3, 3))
bad(op, "half potentials", TypeError, "potentials.*float32", Z, C, potentials=f.half())
bad(op, "potentials elsewhere", ValueError, potentials, Z, C, potentials=f.to("meta"))
for label, keywords in (
    ("queue", {"queue": zeros(2, 5, 8)}),
    ("prototype_weights", {"prototype_weights": torch.ones(3)}),
    ("group", {"group": object()}),
):
    message = f"{label}.*potentials"
    bad(op, f"potentials with {label}", ValueError, message, Z, C, potentials=f, **keywords)

op = sk.swav_potentials
bad(op, "features 2-d", ValueError, "features", zeros(4, 8), C)
bad(op, "D differs", ValueError, "features", Z, zeros(3, 7))
bad(op, "queue of another A", ValueError, "queue", Z, C, queue=zeros(1, 5, 8))
bad(op, "sample weights too few", ValueError, "sample_weights", Z, C, sample_weights=zeros(3))

for assign, error in (
    ((0, 0), ValueError),
    ((0, 3), ValueError),
    ((-1, 0), ValueError),
    ((), ValueError),
    ((0, 1.0), TypeError),
    (0, TypeError),
):
    label = f"assign {assign}"
    bad(sk.swav_loss, label, error, "assign", zeros(3, 4, 8), C, assign=assign)
    bad(sk.swapped_cross_entropy, label, error, "assign", zeros(3, 4, 3), Q, assign=assign)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named(name: str) -> None:
    call, error, message = CASES[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_context_is_named() -> None:
    with (
        pytest.raises(ValueError, match="^use_backend: .*'reference'"),
        sk.use_backend("refrence"),
    ):
        pass


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_KERNELS_BACKEND", "refrence")
    with pytest.raises(ValueError, match=r"SWAV_KERNELS_BACKEND.*'reference'"):
        sk.sinkhorn(S)


def test_an_error_comes_before_out_is_touched() -> None:
    out = torch.full((4, 3), 7.0)
    with pytest.raises(ValueError, match="epsilon"):
        sk.sinkhorn(S, epsilon=-1, out=out)
    assert (out == 7).all()
