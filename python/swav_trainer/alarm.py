"""The alarms: what goes wrong in SwAV, told from settings and telemetry."""

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
MOST_DEAD = 0.25  # share of the prototypes
MOST_EQUAL = 0.25  # share of the prototypes
# samples of a Sinkhorn, in units of K: the paper adds a queue at 256 for 3000. No law: digits learn
# with 128 for 3000
FEWEST_ROWS = 1 / 8
OLDEST_ROWS = 60  # steps in the queue: four times the paper's, 3840 rows of 256 a step
FITS = 5  # lines over which the queue's fit is averaged
# of the queue's oldest rows to the prototypes: on digits a harmless queue kept at 0.98 and more,
# those that cost 13 and 19 points of nearest neighbours were at 0.9
LEAST_FIT = 0.95


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
        self.fits: deque[float] = deque(maxlen=FITS)
        self.raised: list[Alarm] = []
        samples = len(config.assign) * config.step_images
        # a batch of few samples cannot use many prototypes
        self._most_usage = min(1.0, math.log(samples) / math.log(config.num_prototypes))

    def begin(self) -> list[Alarm]:
        """What the settings alone tell."""
        return self._new([_small_batch(self.config)])

    def see(self, step: int, loss: float, stats: Mapping[str, float]) -> list[Alarm]:
        """Take in one step; its new alarms.

        Args:
            step: counted from 1.
            loss: of this step.
            stats: of the loss, and at steps that are written down of `telemetry.Probe`.
        """
        self.recent.append(
            {
                "loss": loss,
                "usage": stats["usage_entropy"],
                "max_code": stats["mean_max_code"],
            }
        )
        if math.isfinite(fit := stats.get("queue_fit", math.nan)):
            self.fits.append(fit)
        if step < GRACE or len(self.recent) < WINDOW:
            return []
        mean = {name: sum(seen[name] for seen in self.recent) / WINDOW for name in self.recent[0]}
        collapse = self._collapse(step, mean)
        if collapse is not None or self._knows("collapse"):
            return self._new([collapse])  # what else is wrong follows from it
        fit = sum(self.fits) / FITS if len(self.fits) == FITS else 1.0
        stale = _stale(step, stats.get("queue_age", 0.0), fit, self.config)
        found = [stale, self._stuck(step, mean), _equal(step, stats, self.config)]
        if stale is None and not self._knows("stale queue"):
            found.append(_dead(step, stats, self.config))  # old rows hold what new ones leave
        return self._new(found)

    def _knows(self, diagnosis: str) -> bool:
        return any(alarm.diagnosis == diagnosis for alarm in self.raised)

    def _new(self, found: list[Alarm | None]) -> list[Alarm]:
        new = [x for x in found if x is not None and not self._knows(x.diagnosis)]
        self.raised += new
        return new

    def _collapse(self, step: int, mean: Mapping[str, float]) -> Alarm | None:
        if mean["usage"] >= COLLAPSED_USAGE * self._most_usage:
            return None
        if self.config.assignment == "softmax":
            cause = "Nothing balances the codes, so all samples share a few prototypes."
            remedy = "Use --assignment sinkhorn."
        else:
            cause = "The features of different images are nearly the same."
            remedy = (
                "Lower --learning-rate, keep --head-batch-norm, and see that the images differ."
            )
        return Alarm(step, "collapse", cause, remedy)

    def _stuck(self, step: int, mean: Mapping[str, float]) -> Alarm | None:
        config = self.config
        log_k = math.log(config.num_prototypes)
        is_dull = mean["max_code"] < STUCK_CODE / config.num_prototypes
        if mean["loss"] <= STUCK_LOSS * log_k or not is_dull:
            return None
        return Alarm(
            step,
            "stuck at ln K",
            f"The codes are nearly uniform: epsilon {config.epsilon:g} is too large for these "
            "scores.",
            f"Lower --epsilon, for example to {config.epsilon / 2:g}.",
        )


def _small_batch(config: Config) -> Alarm | None:
    rows, prototypes = config.step_images + config.queue_length, config.num_prototypes
    is_balanced = config.method == "swav" and config.assignment == "sinkhorn"
    if not is_balanced or rows >= FEWEST_ROWS * prototypes:
        return None
    return Alarm(
        0,
        "batch far below K",
        f"The Sinkhorn balances {rows} samples over {prototypes} prototypes: most get none, and "
        "which do is chance. The paper adds a queue there.",
        f"Raise --effective-batch, or add a --queue-length, to {prototypes} samples in all; or "
        "lower --num-prototypes.",
    )


def _dead(step: int, stats: Mapping[str, float], config: Config) -> Alarm | None:
    share = stats.get("dead_prototypes", 0.0)
    if share <= MOST_DEAD:
        return None
    alive = round((1 - share) * config.num_prototypes)
    return Alarm(
        step,
        "dead prototypes",
        f"{share:.0%} of the {config.num_prototypes} prototypes have long been the nearest of no "
        "sample: more than these images have kinds.",
        f"Lower --num-prototypes, for example to {alive}, or --epsilon.",
    )


def _equal(step: int, stats: Mapping[str, float], config: Config) -> Alarm | None:
    share = stats.get("duplicate_prototypes", 0.0)
    if share <= MOST_EQUAL:
        return None
    return Alarm(
        step,
        "duplicate prototypes",
        f"{share:.0%} of the {config.num_prototypes} prototypes equal another one: dull codes pull "
        "them to one place, or they are more than these images have kinds.",
        f"Lower --epsilon, for example to {config.epsilon / 2:g}, or --num-prototypes.",
    )


def _stale(step: int, age: float, fit: float, config: Config) -> Alarm | None:
    shorter = max(config.step_images, config.queue_length // 2)
    shorten = f"--queue-length, for example to {shorter}"
    if fit < LEAST_FIT:
        return Alarm(
            step,
            "stale queue",
            f"Rows of {age:.0f} steps ago fit the prototypes {fit:.2f} times as well as new ones: "
            "the network learns too fast for them, and they hold prototypes that it has left.",
            f"Raise --queue-start, lower --learning-rate, or shorten {shorten}.",
        )
    if age > OLDEST_ROWS:
        return Alarm(
            step,
            "stale queue",
            f"Rows of {age:.0f} steps ago still count as samples of this batch; in the paper none "
            "are older than 15.",
            f"Shorten {shorten}.",
        )
    return None
