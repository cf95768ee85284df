"""What `patch` swaps: each code base's functions, where they live, and what takes their place.

An adapter has the arguments of the function it replaces, and adds some by keyword alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swav_kernels.compat import bolts, dino, lightly, mmpretrain, solo_learn, vissl

Function = Callable[..., Any]


@dataclass(frozen=True)
class Target:
    """A function of a module, or a method `Class.name`, and what takes its place.

    Of several replacements it is the one with the signature of the release that is installed.
    """

    module: str
    name: str
    replacements: tuple[Function, ...]

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


TARGETS: dict[str, tuple[Target, ...]] = {
    "lightly": (
        Target("lightly.loss.swav_loss", "sinkhorn", (lightly.sinkhorn,)),
        Target("lightly.loss.msn_loss", "sinkhorn", (lightly.msn_sinkhorn,)),
        Target("lightly.loss.capi_loss", "sinkhorn_knopp", (lightly.capi_sinkhorn_knopp,)),
    ),
    "solo_learn": (
        Target(
            "solo.utils.sinkhorn_knopp",
            "SinkhornKnopp.forward",
            (solo_learn.SinkhornKnopp.forward,),
        ),
        Target("solo.losses.swav", "swav_loss_func", (solo_learn.swav_loss_func,)),
    ),
    "vissl": tuple(
        Target("vissl.losses.swav_loss", replacement.__name__, (replacement,))
        for replacement in (vissl.distributed_sinkhornknopp, vissl.distributed_sinkhorn_powerlaw)
    ),
    "mmpretrain": (
        Target(
            "mmpretrain.models.losses.swav_loss",
            "distributed_sinkhorn",
            (mmpretrain.distributed_sinkhorn,),
        ),
    ),
    "dinov2": (
        Target(
            "dinov2.loss.dino_clstoken_loss",
            "DINOLoss.sinkhorn_knopp_teacher",
            (dino.sinkhorn_knopp_teacher,),
        ),
        Target(
            "dinov2.loss.ibot_patch_loss",
            "iBOTPatchLoss.sinkhorn_knopp_teacher",
            (dino.ibot_sinkhorn_knopp_teacher,),
        ),
    ),
    "dinov3": (
        Target(
            "dinov3.loss.dino_clstoken_loss",
            "DINOLoss.sinkhorn_knopp_teacher",
            (dino.sinkhorn_knopp_teacher_in_subgroup,),
        ),
        Target(
            "dinov3.loss.ibot_patch_loss",
            "SinkhornKnoppTeacher.forward",
            (dino.ibot_sinkhorn_knopp_teacher_in_subgroup,),
        ),
    ),
    "bolts": tuple(
        Target(f"pl_bolts.models.self_supervised.swav.{module}", f"{owner}.{name}", functions)
        for module, owner in (("loss", "SWAVLoss"), ("swav_module", "SwAV"))  # the latter to 0.5
        for name, functions in (
            ("sinkhorn", (bolts.sinkhorn, bolts.older_sinkhorn)),
            (
                "distributed_sinkhorn",
                (bolts.distributed_sinkhorn, bolts.older_distributed_sinkhorn),
            ),
        )
    ),
}
