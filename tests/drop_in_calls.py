"""Every drop-in, how it is called rightly, and of what kind each argument is."""

from collections.abc import Callable
from typing import Any

import torch
from public_calls import FLAG, GROUP, Call, count, module_of, scale, tensor
from refusals import A, K, L, N, Of, V

from swav_kernels.compat import bolts, capi, dino, lightly, mmpretrain, official, solo_learn, vissl


def with_exponent(op: str, function: Callable[..., Any], iterations: str, **more: Of) -> Call:
    """An adapter of exponentials [K, N]."""
    name = "Q" if iterations in ("num_iter", "nmb_iters") else "q"
    exponentials = tensor(K, N, wrong=((0, N),))
    return Call(op, function, {name: exponentials, iterations: count(0), **more})


HIGH, LOW = [torch.rand(N, K) for _ in range(A)], [torch.rand(N, K)]
VISSL = {
    "hard_assignment": FLAG, "world_size": Of("any", 1), "use_double_prec": Of("any", False),
    "use_gpu": Of("any", False), "group": GROUP,
}  # fmt: skip
DINO = {
    "self": Of("any", None),
    "teacher_output": tensor(N, K, wrong=((N, 0),)),
    "teacher_temp": Of("scale", 0.1),
    "n_iterations": count(0),
    "group": GROUP,
}
MASKED = {"n_masked_patches_tensor": Of("count tensor", torch.tensor(N))}
VIEWS = Of("views", [torch.rand(N, K) for _ in range(V)])
SUBGROUP = {name: of for name, of in DINO.items() if name != "group"}
CAPI = {
    "M": tensor(N, K, wrong=((N, 0),))._replace(kind="rows"),
    "n_iterations": count(0),
    "group": GROUP,
}


DROP_INS = {
    "official": Call("distributed_sinkhorn", official.distributed_sinkhorn, {
        "out": tensor(N, K, wrong=((N, 0),)), "epsilon": scale(),
        "sinkhorn_iterations": count(0), "group": GROUP,
    }),
    "mmpretrain": Call("distributed_sinkhorn", mmpretrain.distributed_sinkhorn, {
        "out": tensor(N, K, wrong=((N, 0),)), "sinkhorn_iterations": count(0),
        "world_size": Of("any", 1), "epsilon": scale(), "group": GROUP,
    }),
    "lightly": Call("sinkhorn", lightly.sinkhorn, {
        "out": tensor(N, K, wrong=((N, 0),)), "iterations": count(0), "epsilon": scale(),
        "gather_distributed": FLAG,
    }),
    "lightly msn": Call("msn_sinkhorn", lightly.msn_sinkhorn, {
        "probabilities": tensor(N, K, wrong=((N, 0),)), "iterations": Of("count or less", 3),
        "gather_distributed": FLAG,
    }),
    **{
        f"lightly capi{' strict' if strict else ''}": Call(
            "capi_sinkhorn_knopp", lightly.capi_sinkhorn_knopp, {
                "logits": tensor(N, 3, K, wrong=((N, 3, 0),)), "iterations": count(0),
                "gather_distributed": FLAG, "epsilon": Of("eps", 1e-8),
                "strict": FLAG._replace(right=strict),
            },
        )
        for strict in (False, True)
    },
    **{
        f"capi{' strict' if strict else ''}": Call("sinkhorn_knopp", capi.sinkhorn_knopp, {
            **CAPI, "eps": Of("eps", 1e-8), "strict": FLAG._replace(right=strict),
        })
        for strict in (False, True)
    },
    "SwaVLoss": Call("SwaVLoss", lightly.SwaVLoss(), {
        "high_resolution_outputs": Of("views", HIGH), "low_resolution_outputs": Of("views", LOW),
        "queue_outputs": Of("queue views", [torch.rand(L, K)] * A, True),
    }),
    "SwaVLoss settings": Call("SwaVLoss", module_of(lightly.SwaVLoss, HIGH, LOW), {
        "temperature": scale(), "sinkhorn_iterations": count(0), "sinkhorn_epsilon": scale(),
        "sinkhorn_gather_distributed": FLAG,
    }),
    "SinkhornKnopp": Call("SinkhornKnopp", solo_learn.SinkhornKnopp(), {
        "Q": tensor(N, K, wrong=((N, 0),)),
    }),
    "SinkhornKnopp settings": Call(
        "SinkhornKnopp", module_of(solo_learn.SinkhornKnopp, torch.rand(N, K)),
        {"num_iters": count(0), "epsilon": scale(), "world_size": Of("any", 1)},
    ),
    "swav_loss_func": Call("swav_loss_func", solo_learn.swav_loss_func, {
        "preds": VIEWS, "assignments": VIEWS, "temperature": scale(),
    }),
    "vissl": with_exponent(
        "distributed_sinkhornknopp", vissl.distributed_sinkhornknopp, "num_iter", **VISSL
    ),
    "vissl power law": with_exponent(
        "distributed_sinkhorn_powerlaw", vissl.distributed_sinkhorn_powerlaw, "num_iter",
        powerlaw=Of("real", 0.5), **VISSL,
    ),
    "bolts": with_exponent("sinkhorn", bolts.sinkhorn, "num_iters", self=Of("any", None)),
    "bolts distributed": with_exponent(
        "distributed_sinkhorn", bolts.distributed_sinkhorn, "num_iters",
        self=Of("any", None), group=GROUP,
    ),
    "bolts 0.6": with_exponent(
        "older_sinkhorn", bolts.older_sinkhorn, "nmb_iters", self=Of("any", None)
    ),
    "bolts 0.6 distributed": with_exponent(
        "older_distributed_sinkhorn", bolts.older_distributed_sinkhorn, "nmb_iters",
        self=Of("any", None), group=GROUP,
    ),
    "dino": Call("sinkhorn_knopp_teacher", dino.sinkhorn_knopp_teacher, DINO),
    "ibot": Call("ibot_sinkhorn_knopp_teacher", dino.ibot_sinkhorn_knopp_teacher, {
        **DINO, **MASKED,
    }),
    "dinov3 module": Call("SinkhornKnoppTeacher", dino.SinkhornKnoppTeacher(), {
        **{name: of for name, of in SUBGROUP.items() if name != "self"}, **MASKED,
    }),
    "dinov3 module's group": Call(
        "SinkhornKnoppTeacher",
        module_of(dino.SinkhornKnoppTeacher, torch.rand(N, K), 0.1, torch.tensor(N)),
        {"group": GROUP},
    ),
    "dino in subgroup": Call(
        "sinkhorn_knopp_teacher_in_subgroup", dino.sinkhorn_knopp_teacher_in_subgroup, SUBGROUP
    ),
    "ibot in subgroup": Call(
        "ibot_sinkhorn_knopp_teacher_in_subgroup", dino.ibot_sinkhorn_knopp_teacher_in_subgroup,
        {**SUBGROUP, **MASKED},
    ),
}  # fmt: skip
