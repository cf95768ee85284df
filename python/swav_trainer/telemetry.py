"""What the loss does not tell of a run: rank, dead and equal prototypes, the queue, waiting.

Taken at the steps that are written down only, and over all processes: every process asks at the
same steps.
"""

import math

import torch
from torch import Tensor

import swav_kernels as sk
from swav_trainer import ranks
from swav_trainer.clock import Clock, peak_memory
from swav_trainer.config import Config

EQUAL = 0.95  # cosine from which two prototypes are one
IDLE = 10  # samples a prototype: under even use the chance to get none of them is e^-10
CHUNK = 1024  # prototypes that are compared at a time


@torch.no_grad()
def feature_rank(features: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values (Roy & Vetterli 2007).

    Args:
        features: [..., D] of this process.
    """
    rows = features.flatten(0, -2).double()
    gram = ranks.mean(rows.T @ rows).cpu()  # [D, D]; its scale makes no difference
    if not gram.isfinite().all():
        return math.nan
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = singular / singular.sum().clamp_min(1e-300)
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def duplicate_prototypes(prototypes: Tensor) -> float:
    """Share of the prototypes [K, D] that have a cosine above EQUAL to another one."""
    unit = torch.nn.functional.normalize(prototypes, dim=1)
    equal = 0
    for first in range(0, len(unit), CHUNK):
        cosine = unit[first : first + CHUNK] @ unit.T
        cosine.diagonal(first).fill_(-1)  # itself
        equal += int((cosine.amax(1) > EQUAL).sum())
    return equal / len(unit)


class Fill:
    """Since how many samples each prototype has been the nearest of none.

    Args:
        num_prototypes: K.
    """

    def __init__(self, num_prototypes: int) -> None:
        self.idle = torch.zeros(num_prototypes, dtype=torch.long)

    @torch.no_grad()
    def see(self, features: Tensor, prototypes: Tensor) -> float:
        """Take in features [..., D] of all processes; the share of prototypes that are dead."""
        nearest = (features.flatten(0, -2) @ prototypes.T).argmax(1)
        counts = torch.bincount(nearest, minlength=len(self.idle)).double()
        counts = ranks.mean(counts).cpu() * ranks.count()
        self.idle += round(float(counts.sum()))
        self.idle[counts > 0.5] = 0
        return float((self.idle > IDLE * len(self.idle)).double().mean())


@torch.no_grad()
def queue_age(queue: sk.FeatureQueue, rows_a_step: int) -> float:
    """Steps since the oldest row of the queue was put in; 0 for an empty one."""
    rows = queue.rows()
    return 0.0 if rows is None else float(math.ceil(rows.shape[1] / rows_a_step))


@torch.no_grad()
def queue_fit(queue: sk.FeatureQueue, features: Tensor, prototypes: Tensor) -> float:
    """How well the queue's oldest rows still fit the prototypes: 1 is as well as new ones do.

    The mean cosine to the nearest prototype, over that of the batch.

    Args:
        queue: of this process.
        features: [A, B, D] of the batch that it will take in.
        prototypes: [K, D].
    """
    rows = queue.rows()
    if rows is None:
        return math.nan
    following, filled = queue.get_extra_state().tolist()
    first = following if filled == queue.storage.shape[1] else 0
    oldest = (torch.arange(min(features.shape[1], filled)) + first) % filled

    def fit(x: Tensor) -> Tensor:
        return ranks.mean((x.flatten(0, -2) @ prototypes.T).amax(1).double().mean())

    return float(fit(rows[:, oldest.to(rows.device)]) / fit(features))


class Probe:
    """All of it, for the lines of metrics.jsonl.

    Args:
        config: the run's.
        num_steps: of the whole run.
        device: of the network.
    """

    def __init__(self, config: Config, num_steps: int, device: torch.device) -> None:
        self.clock = Clock(device)
        self._device = device
        self.fill = Fill(config.num_prototypes)
        self._every, self._num_steps = config.log_every, num_steps

    def see(
        self,
        step: int,
        features: Tensor,
        prototypes: Tensor,
        queue: sk.FeatureQueue | None,
        waited: float,
    ) -> dict[str, float]:
        """What is to be written down of step `step`; nothing if none is.

        Args:
            step: counted from 1.
            features: [A, B, D] of this process.
            prototypes: [K, D]; of several sets the first.
            queue: before it takes in the features.
            waited: seconds in which the training had no crops, in all.
        """
        if step % self._every and step != self._num_steps:
            return {}
        features = features.detach()
        values = {
            "feature_rank": feature_rank(features),
            "dead_prototypes": self.fill.see(features, prototypes),
            "duplicate_prototypes": duplicate_prototypes(prototypes),
            "peak_memory": peak_memory(self._device),
            **self.clock.shares(waited),
        }
        if queue is not None:
            values["queue_age"] = queue_age(queue, features.shape[1])
            values["queue_fit"] = queue_fit(queue, features, prototypes)
        return values
