"""Every public function, how it is called rightly, and of what kind each argument is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from refusals import A, D, K, L, N, Of, V

import swav_kernels as sk


class Call(NamedTuple):
    """A public function, the name that its errors begin with, and its arguments."""

    op: str
    function: Callable[..., Any]
    arguments: dict[str, Of]


def tensor(*shape: int, optional: bool = False, wrong: tuple[tuple[int, ...], ...] = ()) -> Of:
    """A floating tensor of that shape; `wrong` are shapes of the right rank that do not fit."""
    more = tuple((f"shape {list(x)}", torch.rand(x)) for x in wrong)
    return Of("tensor", torch.rand(shape), optional, more)


def scale(right: float = 0.1) -> Of:
    return Of("scale", right)


def count(least: int) -> Of:
    return Of("count", 2, more=((f"{least - 1}", least - 1),))


FLAG, BACKEND, GROUP = Of("flag", False), Of("backend", None, True), Of("group", None, True)
PRECISION = Of("precision", "float32")
ASSIGN = Of("assign", (0, 1))
BOUND = Of("scale", None, True)


def module_of(make: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
    """Settings of a module, checked at the latest where it is called."""
    return lambda **settings: make(**settings)(*inputs)


SINKHORN = {
    "scores": tensor(N, K, wrong=((N, 0),)),
    "iterations": count(0),
    "epsilon": scale(),
    "gather_distributed": FLAG,
    "group": GROUP,
    "prototype_weights": tensor(K, optional=True, wrong=((K + 1,), (1, K), ())),
    "sample_weights": tensor(N, optional=True, wrong=((N + 1,), (2, N), ())),
    "score_bound": BOUND,
    "precision": PRECISION,
    "check_finite": FLAG,
    "backend": BACKEND,
}
LOSS = {
    "features": tensor(V, N, D, wrong=((1, N, D), (V, N, D - 1), (0, N, D))),
    "prototypes": tensor(K, D, wrong=((K, D + 1), (0, D), (K, 0))),
    "temperature": scale(),
    "epsilon": scale(),
    "iterations": count(1),
    "assign": ASSIGN,
    "queue": tensor(A, L, D, optional=True, wrong=((A + 1, L, D), (A, L, D + 1))),
    "group": GROUP,
    "hard": FLAG,
    "prototype_weights": tensor(K, optional=True, wrong=((K + 1,), (1, K), ())),
    "precision": PRECISION,
    "normalize": FLAG,
    "return_stats": FLAG,
    "backend": BACKEND,
}

DISTILLATION = {
    "student_features": tensor(N, D, wrong=((N + 1, D), (N, D - 1), (V, N, D))),
    "student_prototypes": tensor(K, D, wrong=((K + 1, D), (K, D + 1), (0, D), (K, 0))),
    "teacher_features": tensor(N, L, wrong=((N - 1, L), (N, L + 1), (A, N, L))),
    "teacher_prototypes": tensor(K, L, wrong=((K - 1, L), (K, L - 1), (K, 0))),
}

CALLS = {
    "sinkhorn": Call("sinkhorn", sk.sinkhorn, {
        **SINKHORN, "hard": FLAG, "out": Of("out", torch.empty(N, K), True),
    }),
    "sinkhorn_potentials": Call("sinkhorn_potentials", sk.sinkhorn_potentials, {
        **SINKHORN, "iterations": count(1),
    }),
    "prototype_scores": Call("prototype_scores", sk.prototype_scores, {
        "features": tensor(N, D, wrong=((N, D + 1), ()))._replace(kind="rows"),
        "prototypes": tensor(K, D, wrong=((K, D + 1), (K, 0))),
        "normalize": FLAG, "backend": BACKEND,
    }),
    "swapped_cross_entropy": Call("swapped_cross_entropy", sk.swapped_cross_entropy, {
        "scores": tensor(V, N, K, wrong=((1, N, K), (V, N, 0), (V, N + 1, K))),
        "codes": tensor(A, N, K, wrong=((A, N, K + 1), (A, N + 1, K), (A + 1, N, K))),
        "temperature": scale(), "assign": ASSIGN, "backend": BACKEND,
    }),
    "prototype_cross_entropy": Call("prototype_cross_entropy", sk.prototype_cross_entropy, {
        "student_scores": tensor(N, K, wrong=((N, 0), (N + 1, K))),
        "teacher_codes": tensor(N, K, wrong=((N, K + 1), (N - 1, K))),
        "temperature": scale(),
        "weights": tensor(N, optional=True, wrong=((N + 1,), ())), "backend": BACKEND,
    }),
    "prototype_distillation_loss": Call(
        "prototype_distillation_loss", sk.prototype_distillation_loss, {
            **DISTILLATION,
            **{n: LOSS[n] for n in ("temperature", "epsilon", "iterations", "group", "precision")},
            "weights": tensor(N, optional=True, wrong=((N + 1,), (1, N), ())), "backend": BACKEND,
        },
    ),
    "prototype_distillation_loss with potentials": Call(
        "prototype_distillation_loss", sk.prototype_distillation_loss, {
            **DISTILLATION, "potentials": tensor(K, optional=True, wrong=((K + 1,), (2, K), ())),
        },
    ),
    "swav_loss": Call("swav_loss", sk.swav_loss, LOSS),
    "swav_loss with potentials": Call("swav_loss", sk.swav_loss, {
        "features": LOSS["features"], "prototypes": LOSS["prototypes"],
        "potentials": tensor(A, K, optional=True, wrong=((A, K + 1), (A + 1, K), ())),
    }),
    "swav_potentials": Call("swav_potentials", sk.swav_potentials, {
        "features": tensor(A, N, D, wrong=((A, N, D - 1),)),
        "sample_weights": tensor(N, optional=True, wrong=((N + 1,), (A + 1, N), ())),
        **{name: LOSS[name] for name in (
            "prototypes", "epsilon", "iterations", "queue", "group", "normalize",
            "prototype_weights", "precision", "backend",
        )},
    }),
    "SwAVLoss": Call(
        "swav_loss", module_of(sk.SwAVLoss, LOSS["features"].right, LOSS["prototypes"].right),
        {n: LOSS[n] for n in LOSS if n not in ("features", "prototypes", "queue")},
    ),
    "Prototypes": Call("Prototypes", sk.Prototypes, {"dim": count(1), "num_prototypes": count(1)}),
    "Prototypes.forward": Call("prototype_scores", sk.Prototypes(D, K), {
        "features": tensor(N, D, wrong=((N, D + 1), ()))._replace(kind="rows"),
    }),
    "FeatureQueue": Call("FeatureQueue", sk.FeatureQueue, {
        "length": count(1), "dim": count(1), "num_crops": count(1),
    }),
    "FeatureQueue.update": Call("FeatureQueue.update", sk.FeatureQueue(L, D, A).update, {
        "features": tensor(A, N, D, wrong=((A, L + 1, D), (A + 1, N, D), (A, N, D + 1))),
    }),
    "FeatureQueue.set_extra_state": Call(
        "FeatureQueue.set_extra_state", sk.FeatureQueue(L, D, A).set_extra_state,
        {"state": Of("state", torch.tensor([0, 0]))},
    ),
    "patch": Call("patch", sk.patch, {"code_base": Of("code base", "lightly")}),
    "unpatch": Call("unpatch", sk.unpatch, {"code_base": Of("code base", "lightly", True)}),
    "patched": Call("patched", lambda code_base: sk.patched(code_base).__enter__(), {
        "code_base": Of("code base", "lightly"),
    }),
    "use_backend": Call("use_backend", lambda name: sk.use_backend(name).__enter__(), {
        "name": Of("backend", "reference"),
    }),
}  # fmt: skip
