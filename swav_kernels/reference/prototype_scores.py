"""Prototype scores: every feature compared with every prototype."""

from torch import Tensor


def prototype_scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return features [N, D] @ prototypes [K, D].T -> [N, K]."""
    return features @ prototypes.T
