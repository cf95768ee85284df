"""The collapse alarm: what goes wrong in SwAV, told from the loss's telemetry."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from swav_trainer.config import Config

WINDOW = 50  # steps that are averaged
GRACE = 100  # first steps, whose codes are dull in every run
STUCK_LOSS = 0.95  # share of ln K
STUCK_CODE = 3.0  # mean largest code, in units of 1 / K
COLLAPSED_USAGE = 0.5  # entropy of the nearest prototypes, as a share of what it could be


@dataclass(frozen=True)
class Alarm:
    """One diagnosis."""

    step: int
    diagnosis: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        """One line for the log."""
        return f"step {self.step}: {self.diagnosis}. {self.cause} {self.remedy}"


class Watch:
    """Averages `stats` over steps and names each trouble once.

    The entropy of the mean code is no use here: the Sinkhorn keeps it near 1 even when all features
    are equal. Usage counts each sample's nearest prototype.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.raised: list[Alarm] = []
        samples = 2 * config.step_images
        # a batch of few samples cannot use many prototypes
        self._most_usage = min(1.0, math.log(samples) / math.log(config.num_prototypes))

    def see(self, step: int, loss: float, stats: Mapping[str, float]) -> Alarm | None:
        """Take in one step; the alarm if it is a new one."""
        self.recent.append(
            {
                "loss": loss,
                "usage": stats["usage_entropy"],
                "max_code": stats["mean_max_code"],
            }
        )
        if step < GRACE or len(self.recent) < WINDOW:
            return None
        mean = {name: sum(seen[name] for seen in self.recent) / WINDOW for name in self.recent[0]}
        alarm = self._diagnose(step, mean)
        if alarm is None or alarm.diagnosis in [known.diagnosis for known in self.raised]:
            return None
        self.raised.append(alarm)
        return alarm

    def _diagnose(self, step: int, mean: Mapping[str, float]) -> Alarm | None:
        config = self.config
        if mean["usage"] < COLLAPSED_USAGE * self._most_usage:
            if config.assignment == "softmax":
                cause = "Nothing balances the codes, so all samples share a few prototypes."
                remedy = "Use --assignment sinkhorn."
            else:
                cause = "The features of different images are nearly the same."
                remedy = (
                    "Lower --learning-rate, keep --head-batch-norm, and see that the images differ."
                )
            return Alarm(step, "collapse", cause, remedy)
        log_k = math.log(config.num_prototypes)
        is_dull = mean["max_code"] < STUCK_CODE / config.num_prototypes
        if mean["loss"] > STUCK_LOSS * log_k and is_dull:
            return Alarm(
                step,
                "stuck at ln K",
                f"The codes are nearly uniform: epsilon {config.epsilon:g} is too large for these "
                "scores.",
                f"Lower --epsilon, for example to {config.epsilon / 2:g}.",
            )
        return None
