"""The ops as torch's own, `torch.ops.swav_kernels.<op>`: for graphs, exports and transforms."""

import importlib

OPS = (
    "prototype_cross_entropy",
    "prototype_distillation_loss",
    "prototype_scores",
    "sinkhorn",
    "swapped_cross_entropy",
    "swav_loss",
    "swav_potentials",
)  # one file each

for _name in OPS:
    importlib.import_module(f"{__name__}.{_name}")
