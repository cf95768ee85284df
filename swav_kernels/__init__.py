"""Fused kernels for SwAV: prototype scores, Sinkhorn codes and the swapped cross-entropy.

Every op has a plain PyTorch meaning (`backend="reference"`) and fused backends (`"cpu"`,
`"triton"`, `"cuda"`). `backend=None` picks one by device; see `available_backends()` and
`doctor()`. `swav_kernels.compat` has drop-ins for code bases that exist, `patch` puts them there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from swav_kernels.dispatch import available_backends, use_backend
from swav_kernels.doctor import doctor
from swav_kernels.modules import FeatureQueue, Prototypes, SwAVLoss
from swav_kernels.ops.prototype_cross_entropy import prototype_cross_entropy
from swav_kernels.ops.prototype_distillation_loss import prototype_distillation_loss
from swav_kernels.ops.prototype_scores import prototype_scores
from swav_kernels.ops.sinkhorn import sinkhorn, sinkhorn_potentials
from swav_kernels.ops.swapped_cross_entropy import swapped_cross_entropy
from swav_kernels.ops.swav_loss import swav_loss
from swav_kernels.ops.swav_potentials import swav_potentials

if TYPE_CHECKING:
    from swav_kernels import compat
    from swav_kernels.compat.patching import patch, patched, unpatch

__version__ = "0.1.0"

importlib.import_module("swav_kernels.library")  # so that exported programs find the ops

__all__ = [
    "FeatureQueue",
    "Prototypes",
    "SwAVLoss",
    "__version__",
    "available_backends",
    "compat",
    "doctor",
    "patch",
    "patched",
    "prototype_cross_entropy",
    "prototype_distillation_loss",
    "prototype_scores",
    "sinkhorn",
    "sinkhorn_potentials",
    "swapped_cross_entropy",
    "swav_loss",
    "swav_potentials",
    "unpatch",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """Import the drop-ins at their first use."""
    if name == "compat":
        return importlib.import_module("swav_kernels.compat")
    if name in ("patch", "patched", "unpatch"):
        return getattr(importlib.import_module("swav_kernels.compat.patching"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
