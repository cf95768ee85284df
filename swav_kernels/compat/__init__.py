"""Drop-ins for code bases that exist: one file each, under the names and arguments they have there.

Every Sinkhorn of the field that reduces its sums correctly is the same function of the scores, so
each adapter is a few lines over `swav_kernels.sinkhorn`. Codes carry no gradient.
`swav_kernels.patch("lightly")` swaps adapters into an installed package.
"""

from swav_kernels.compat import (
    bolts,
    capi,
    dino,
    lightly,
    mmpretrain,
    official,
    solo_learn,
    vissl,
)

__all__ = [
    "bolts",
    "capi",
    "dino",
    "lightly",
    "mmpretrain",
    "official",
    "solo_learn",
    "vissl",
]
