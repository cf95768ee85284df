"""Codes that are balanced while the network still embeds the crops that have none.

On a GPU the Sinkhorn, with its collectives over the processes, goes on a stream of its own beside
the network's; the loss waits for it. On a CPU the same is done one after the other.
"""

import torch
from torch import Tensor

from swav_trainer.swav import SwAV


class Balancing:
    """The potentials of one step's codes, on the way.

    Args:
        objective: whose codes they are.
        device: of the network.
    """

    def __init__(self, objective: SwAV, device: torch.device) -> None:
        self._objective = objective
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._potentials: list[Tensor] = []

    def start(self, assign_features: Tensor) -> None:
        """Begin with the features [A, B, D] of the assign crops."""
        if self._stream is None:
            self._potentials = self._objective.potentials(assign_features)
            return
        self._stream.wait_stream(torch.cuda.current_stream(assign_features.device))
        assign_features.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            self._potentials = self._objective.potentials(assign_features)

    def finish(self) -> list[Tensor]:
        """Return f [A, K] of each head; what follows on the device waits for them."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for f in self._potentials:
                f.record_stream(current)
        return self._potentials
