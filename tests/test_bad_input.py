"""A caller's mistakes: one clear error each, that names the op and the argument."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import zeros

import swav_kernels as sk

NAN = float("nan")
META = {"device": "meta"}

Case = tuple[Callable[[], Any], type[Exception], str]

S, Z, C, Q = zeros(4, 3), zeros(2, 4, 8), zeros(3, 8), zeros(2, 4, 3)
INTEGER = torch.int64


def shared_cases(name: str, call: Callable[..., Any]) -> dict[str, Case]:
    """Settings that several ops check alike; call(**keywords) is otherwise right."""
    cases = {}
    for label, keywords, error, argument in (
        ("epsilon 0", {"epsilon": 0}, ValueError, "epsilon"),
        ("epsilon negative", {"epsilon": -0.05}, ValueError, "epsilon"),
        ("epsilon NaN", {"epsilon": NAN}, ValueError, "epsilon"),
        ("epsilon infinite", {"epsilon": float("inf")}, ValueError, "epsilon"),
        ("epsilon below 1e-30", {"epsilon": 1e-31}, ValueError, "epsilon"),
        ("epsilon text", {"epsilon": "0.05"}, TypeError, "epsilon"),
        ("iterations negative", {"iterations": -1}, ValueError, "iterations"),
        ("iterations fractional", {"iterations": 1.5}, TypeError, "iterations"),
        ("precision unknown", {"precision": "tf32"}, ValueError, "precision.*tf32"),
        ("backend unknown", {"backend": "cqu"}, ValueError, "backend.*cqu.*did you mean 'cpu'"),
        (
            "prototype weights too many",
            {"prototype_weights": zeros(4)},
            ValueError,
            "prototype_weights",
        ),
        (
            "prototype weights 2-d",
            {"prototype_weights": zeros(1, 3)},
            ValueError,
            "prototype_weights",
        ),
        (
            "prototype weights integer",
            {"prototype_weights": zeros(3, dtype=INTEGER)},
            TypeError,
            "prototype_weights",
        ),
        (
            "prototype weights elsewhere",
            {"prototype_weights": zeros(3, **META)},
            ValueError,
            "prototype_weights",
        ),
        (
            "prototype weights a list",
            {"prototype_weights": [1, 1, 1]},
            TypeError,
            "prototype_weights",
        ),
    ):
        cases[f"{name}: {label}"] = (
            lambda keywords=keywords: call(**keywords),
            error,
            rf"^{name}: .*{argument}",
        )
    return cases


def sinkhorn_cases(name: str, op: Callable[..., Any]) -> dict[str, Case]:
    """What both Sinkhorn ops check."""
    cases = shared_cases(name, lambda **keywords: op(S, **keywords))
    for label, scores, keywords, error, argument in (
        ("1-d", zeros(3), {}, ValueError, "scores"),
        ("4-d", zeros(1, 2, 4, 3), {}, ValueError, "scores"),
        ("no prototypes", zeros(4, 0), {}, ValueError, "scores"),
        ("integer", zeros(4, 3, dtype=INTEGER), {}, TypeError, "scores.*float"),
        ("bool", zeros(4, 3, dtype=torch.bool), {}, TypeError, "scores"),
        ("complex", zeros(4, 3, dtype=torch.complex64), {}, TypeError, "scores"),
        ("no tensor", [[0.0]], {}, TypeError, "scores"),
        ("sparse", zeros(4, 3).to_sparse(), {}, TypeError, "scores"),
        ("sample weights too few", S, {"sample_weights": zeros(3)}, ValueError, "sample_weights"),
        (
            "sample weights of A",
            zeros(2, 4, 3),
            {"sample_weights": zeros(3, 4)},
            ValueError,
            "sample_weights",
        ),
        (
            "sample weights integer",
            S,
            {"sample_weights": zeros(4, dtype=INTEGER)},
            TypeError,
            "sample_weights",
        ),
        (
            "sample weights elsewhere",
            S,
            {"sample_weights": zeros(4, **META)},
            ValueError,
            "sample_weights",
        ),
        ("score bound negative", S, {"score_bound": -1.0}, ValueError, "score_bound"),
        ("score bound NaN", S, {"score_bound": NAN}, ValueError, "score_bound"),
        ("NaN", torch.full((4, 3), NAN), {"check_finite": True}, ValueError, "scores.*row 0"),
    ):
        cases[f"{name}: {label}"] = (
            lambda scores=scores, keywords=keywords: op(scores, **keywords),
            error,
            rf"^{name}: .*{argument}",
        )
    return cases


CASES: dict[str, Case] = {
    **sinkhorn_cases("sinkhorn", sk.sinkhorn),
    **sinkhorn_cases("sinkhorn_potentials", sk.sinkhorn_potentials),
    **shared_cases("swav_loss", lambda **keywords: sk.swav_loss(Z, C, **keywords)),
    **shared_cases("swav_potentials", lambda **keywords: sk.swav_potentials(Z, C, **keywords)),
    "sinkhorn_potentials: iterations 0": (
        lambda: sk.sinkhorn_potentials(S, 0),
        ValueError,
        "^sinkhorn_potentials: .*iterations",
    ),
    "swav_loss: iterations 0": (
        lambda: sk.swav_loss(Z, C, iterations=0),
        ValueError,
        "^swav_loss: .*iterations",
    ),
    "swav_potentials: iterations 0": (
        lambda: sk.swav_potentials(Z, C, iterations=0),
        ValueError,
        "^swav_potentials: .*iterations",
    ),
    "sinkhorn: out of another shape": (
        lambda: sk.sinkhorn(S, out=zeros(3, 4)),
        ValueError,
        "^sinkhorn: .*out",
    ),
    "sinkhorn: out of another dtype": (
        lambda: sk.sinkhorn(S, out=zeros(4, 3, dtype=torch.float64)),
        ValueError,
        "^sinkhorn: .*out.*float32",
    ),
    "sinkhorn: half out of half scores": (
        lambda: sk.sinkhorn(S.half(), out=S.half()),
        ValueError,
        "^sinkhorn: .*out.*float32",
    ),
    "sinkhorn: out elsewhere": (
        lambda: sk.sinkhorn(S, out=zeros(4, 3, **META)),
        ValueError,
        "^sinkhorn: .*out",
    ),
    "sinkhorn: out in part the scores": (
        lambda: (lambda x: sk.sinkhorn(x[:4], out=x[1:]))(zeros(5, 3)),
        ValueError,
        "^sinkhorn: .*out",
    ),
    "sinkhorn: out with gaps": (
        lambda: sk.sinkhorn(S, out=zeros(4, 6)[:, ::2]),
        ValueError,
        "^sinkhorn: .*out.*contiguous",
    ),
    # prototype_scores
    "prototype_scores: D differs": (
        lambda: sk.prototype_scores(zeros(4, 7), C),
        ValueError,
        "^prototype_scores: .*features.*8",
    ),
    "prototype_scores: no dimension": (
        lambda: sk.prototype_scores(zeros(()), C),
        ValueError,
        "^prototype_scores: .*features",
    ),
    "prototype_scores: prototypes 1-d": (
        lambda: sk.prototype_scores(Z, zeros(8)),
        ValueError,
        "^prototype_scores: .*prototypes",
    ),
    "prototype_scores: integer features": (
        lambda: sk.prototype_scores(Z.long(), C),
        TypeError,
        "^prototype_scores: .*features.*float",
    ),
    "prototype_scores: integer prototypes": (
        lambda: sk.prototype_scores(Z, C.int()),
        TypeError,
        "^prototype_scores: .*prototypes",
    ),
    "prototype_scores: elsewhere": (
        lambda: sk.prototype_scores(Z, zeros(3, 8, **META)),
        ValueError,
        "^prototype_scores: .*prototypes.*meta",
    ),
    "prototype_scores: backend unknown": (
        lambda: sk.prototype_scores(Z, C, backend="tritn"),
        ValueError,
        "^prototype_scores: .*'triton'",
    ),
    # swapped_cross_entropy
    "swapped_cross_entropy: scores 2-d": (
        lambda: sk.swapped_cross_entropy(S, Q),
        ValueError,
        "^swapped_cross_entropy: .*scores",
    ),
    "swapped_cross_entropy: codes 2-d": (
        lambda: sk.swapped_cross_entropy(Q, S),
        ValueError,
        "^swapped_cross_entropy: .*codes",
    ),
    "swapped_cross_entropy: K differs": (
        lambda: sk.swapped_cross_entropy(Q, zeros(2, 4, 5)),
        ValueError,
        "^swapped_cross_entropy: .*codes",
    ),
    "swapped_cross_entropy: B differs": (
        lambda: sk.swapped_cross_entropy(Q, zeros(2, 5, 3)),
        ValueError,
        "^swapped_cross_entropy: .*codes",
    ),
    "swapped_cross_entropy: codes for another assign": (
        lambda: sk.swapped_cross_entropy(Q, Q, assign=(0,)),
        ValueError,
        "^swapped_cross_entropy: .*codes",
    ),
    "swapped_cross_entropy: integer scores": (
        lambda: sk.swapped_cross_entropy(Q.long(), Q),
        TypeError,
        "^swapped_cross_entropy: .*scores",
    ),
    "swapped_cross_entropy: integer codes": (
        lambda: sk.swapped_cross_entropy(Q, Q.long()),
        TypeError,
        "^swapped_cross_entropy: .*codes",
    ),
    "swapped_cross_entropy: elsewhere": (
        lambda: sk.swapped_cross_entropy(Q, zeros(2, 4, 3, **META)),
        ValueError,
        "^swapped_cross_entropy: .*codes.*meta",
    ),
    "swapped_cross_entropy: temperature 0": (
        lambda: sk.swapped_cross_entropy(Q, Q, 0.0),
        ValueError,
        "^swapped_cross_entropy: .*temperature",
    ),
    "swapped_cross_entropy: temperature NaN": (
        lambda: sk.swapped_cross_entropy(Q, Q, NAN),
        ValueError,
        "^swapped_cross_entropy: .*temperature",
    ),
    "swapped_cross_entropy: no prototypes": (
        lambda: sk.swapped_cross_entropy(zeros(2, 4, 0), zeros(2, 4, 0)),
        ValueError,
        "^swapped_cross_entropy: .*scores",
    ),
    "swapped_cross_entropy: backend unknown": (
        lambda: sk.swapped_cross_entropy(Q, Q, backend="refrence"),
        ValueError,
        "^swapped_cross_entropy: .*'reference'",
    ),
    # swav_loss and swav_potentials
    "swav_loss: features 2-d": (
        lambda: sk.swav_loss(zeros(4, 8), C),
        ValueError,
        "^swav_loss: .*features",
    ),
    "swav_loss: prototypes 3-d": (
        lambda: sk.swav_loss(Z, Z),
        ValueError,
        "^swav_loss: .*prototypes",
    ),
    "swav_loss: D differs": (
        lambda: sk.swav_loss(Z, zeros(3, 7)),
        ValueError,
        "^swav_loss: .*features",
    ),
    "swav_loss: no prototypes": (
        lambda: sk.swav_loss(Z, zeros(0, 8)),
        ValueError,
        "^swav_loss: .*prototypes",
    ),
    "swav_loss: integer features": (
        lambda: sk.swav_loss(Z.long(), C),
        TypeError,
        "^swav_loss: .*features",
    ),
    "swav_loss: prototypes elsewhere": (
        lambda: sk.swav_loss(Z, zeros(3, 8, **META)),
        ValueError,
        "^swav_loss: .*prototypes",
    ),
    "swav_loss: temperature negative": (
        lambda: sk.swav_loss(Z, C, temperature=-1),
        ValueError,
        "^swav_loss: .*temperature",
    ),
    "swav_loss: queue of another A": (
        lambda: sk.swav_loss(Z, C, queue=zeros(1, 5, 8)),
        ValueError,
        "^swav_loss: .*queue",
    ),
    "swav_loss: queue of another D": (
        lambda: sk.swav_loss(Z, C, queue=zeros(2, 5, 7)),
        ValueError,
        "^swav_loss: .*queue",
    ),
    "swav_loss: queue 2-d": (
        lambda: sk.swav_loss(Z, C, queue=zeros(5, 8)),
        ValueError,
        "^swav_loss: .*queue",
    ),
    "swav_loss: queue integer": (
        lambda: sk.swav_loss(Z, C, queue=zeros(2, 5, 8, dtype=INTEGER)),
        TypeError,
        "^swav_loss: .*queue",
    ),
    "swav_loss: queue elsewhere": (
        lambda: sk.swav_loss(Z, C, queue=zeros(2, 5, 8, **META)),
        ValueError,
        "^swav_loss: .*queue",
    ),
    "swav_loss: potentials of another K": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(2, 4)),
        ValueError,
        "^swav_loss: .*potentials",
    ),
    "swav_loss: potentials of another A": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(3, 3)),
        ValueError,
        "^swav_loss: .*potentials",
    ),
    "swav_loss: half potentials": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(2, 3).half()),
        TypeError,
        "^swav_loss: .*potentials.*float32",
    ),
    "swav_loss: potentials elsewhere": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(2, 3, **META)),
        ValueError,
        "^swav_loss: .*potentials",
    ),
    "swav_loss: potentials with a queue": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(2, 3), queue=zeros(2, 5, 8)),
        ValueError,
        "^swav_loss: .*queue.*potentials",
    ),
    "swav_loss: potentials with weights": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(2, 3), prototype_weights=torch.ones(3)),
        ValueError,
        "^swav_loss: .*prototype_weights.*potentials",
    ),
    "swav_loss: potentials with a group": (
        lambda: sk.swav_loss(Z, C, potentials=zeros(2, 3), group=object()),
        ValueError,
        "^swav_loss: .*group.*potentials",
    ),
    "swav_potentials: features 2-d": (
        lambda: sk.swav_potentials(zeros(4, 8), C),
        ValueError,
        "^swav_potentials: .*features",
    ),
    "swav_potentials: D differs": (
        lambda: sk.swav_potentials(Z, zeros(3, 7)),
        ValueError,
        "^swav_potentials: .*features",
    ),
    "swav_potentials: queue of another A": (
        lambda: sk.swav_potentials(Z, C, queue=zeros(1, 5, 8)),
        ValueError,
        "^swav_potentials: .*queue",
    ),
    "swav_potentials: sample weights too few": (
        lambda: sk.swav_potentials(Z, C, sample_weights=zeros(3)),
        ValueError,
        "^swav_potentials: .*sample_weights",
    ),
    # contexts
    "use_backend: unknown": (
        lambda: sk.use_backend("refrence").__enter__(),
        ValueError,
        "^use_backend: .*'reference'",
    ),
}

for _op, _call in (
    ("swav_loss", lambda **keywords: sk.swav_loss(zeros(3, 4, 8), C, **keywords)),
    ("swapped_cross_entropy", lambda **k: sk.swapped_cross_entropy(zeros(3, 4, 3), Q, **k)),
):
    for _assign, _error in (
        ((0, 0), ValueError),
        ((0, 3), ValueError),
        ((-1, 0), ValueError),
        ((), ValueError),
        ((0, 1.0), TypeError),
        (0, TypeError),
    ):
        CASES[f"{_op}: assign {_assign}"] = (
            lambda call=_call, assign=_assign: call(assign=assign),
            _error,
            f"^{_op}: .*assign",
        )
CASES["swav_loss: V = 1"] = (
    lambda: sk.swav_loss(Z[:1], C, assign=(0,)),
    ValueError,
    "^swav_loss: .*crops",
)
CASES["swapped_cross_entropy: V = 1"] = (
    lambda: sk.swapped_cross_entropy(Q[:1], Q[:1], assign=(0,)),
    ValueError,
    "^swapped_cross_entropy: .*crops",
)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named(name: str) -> None:
    call, error, message = CASES[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_KERNELS_BACKEND", "refrence")
    with pytest.raises(ValueError, match=r"SWAV_KERNELS_BACKEND.*'reference'"):
        sk.sinkhorn(S)


def test_an_error_comes_before_out_is_touched() -> None:
    out = torch.full((4, 3), 7.0)
    with pytest.raises(ValueError, match="epsilon"):
        sk.sinkhorn(S, epsilon=-1, out=out)
    assert (out == 7).all()
