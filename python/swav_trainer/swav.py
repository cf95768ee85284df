"""What a SwAV run minimises: the swapped loss over its prototypes, with queue and telemetry."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import swav_kernels as sk
from swav_trainer import queues, ranks
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.model import Model

if TYPE_CHECKING:
    from swav_trainer.engine import Trainer

Stats = dict[str, Tensor]


class SwAV:
    """The loss of a run, over all its sets of prototypes.

    Args:
        config: the settings.
        model: whose prototypes they are.
        num_steps: of the whole run.
        steps: of an epoch.
    """

    learns_prototypes = True

    def __init__(self, config: Config, model: Model, num_steps: int, steps: int) -> None:
        self.config = config
        self.model = model
        weight = model.prototypes.weight
        self._group = ranks.group_apart() if config.overlap else ranks.group()
        self.queue = None
        if config.queue_length:
            length = ranks.share(config.queue_length, "--queue-length")
            queue = sk.FeatureQueue(length, config.feature_dim, len(config.assign))
            self.queue = queue.to(weight.device, weight.dtype)
        self._queue_start = config.queue_start * num_steps
        if config.queue_epoch:
            self._queue_start = config.queue_epoch * steps
        # a backend that cannot run here says so before anything is written
        with torch.no_grad():
            self.loss(weight.new_zeros(config.num_crops, 1, config.feature_dim), None)

    @property
    def backend(self) -> str | None:
        """The backend of the ops; None leaves the choice to SWAV_KERNELS_BACKEND first."""
        return None if self.config.backend == "auto" else self.config.backend

    def begin_epoch(self, trainer: "Trainer", epoch: int) -> None:
        """Nothing waits for the turn of an epoch."""

    def potentials(self, assign_features: Tensor) -> list[Tensor]:
        """What the codes of all these features, [A, B, D], need: f [A, K] of each head."""
        config = self.config
        if config.assignment == "softmax":
            num_assign = len(config.assign)
            flat = assign_features.new_zeros(num_assign, config.num_prototypes)
            return [flat] * config.heads
        return [
            sk.swav_potentials(
                assign_features,
                head.weight,
                epsilon=config.epsilon,
                iterations=config.iterations,
                queue=None if self.queue is None else self.queue.rows(),
                group=self._group,
                precision=config.precision,
                backend=self.backend,
            )
            for head in self.model.prototype_heads
        ]

    def loss(
        self, features: Tensor, rows: Tensor | None, potentials: list[Tensor] | None = None
    ) -> tuple[Tensor, Stats]:
        """Loss and telemetry, means over the heads.

        Args:
            features: [V, B, D].
            rows: the images, which SwAV need not know.
            potentials: of the codes, where they are known.
        """
        if potentials is None and self.config.assignment == "softmax":
            potentials = self.potentials(features)
        results = self._losses(features, self.config.assign, potentials, return_stats=True)
        return average([loss for loss, _ in results]), _average_stats(results)

    def part_loss(self, features: Tensor, rows: Tensor, potentials: list[Tensor] | None) -> Tensor:
        """Loss of a part of a batch, whose codes the whole batch has balanced."""
        return average(self._losses(features, self.config.assign, potentials, return_stats=False))

    def _losses(
        self,
        features: Tensor,
        assign: tuple[int, ...],
        potentials: list[Tensor] | None,
        return_stats: bool,
    ) -> list[Any]:
        """What `swav_loss` returns, for each head."""
        config = self.config
        shares = return_stats or potentials is None  # something with the other processes
        try:
            return [
                sk.swav_loss(
                    features,
                    head.weight,
                    assign=assign,
                    temperature=config.temperature,
                    epsilon=config.epsilon,
                    iterations=config.iterations,
                    queue=None if self.queue is None or potentials else self.queue.rows(),
                    potentials=None if potentials is None else potentials[i],
                    group=self._group if shares else None,
                    hard=config.hard_codes,
                    precision=config.precision,
                    return_stats=return_stats,
                    backend=self.backend,
                )
                for i, head in enumerate(self.model.prototype_heads)
            ]
        except ValueError as error:  # a backend that cannot run here, an epsilon out of range
            raise TrainerError(str(error)) from error

    @torch.no_grad()
    def telemetry(
        self, assign_features: Tensor, potentials: list[Tensor] | None, loss: Tensor
    ) -> Stats:
        """Telemetry of the codes [A, B, D] of a step whose loss was taken otherwise."""
        # the loss wants two crops, the telemetry looks at those that have codes
        views = assign_features if len(assign_features) > 1 else assign_features.repeat(2, 1, 1)
        results = self._losses(
            views, tuple(range(len(assign_features))), potentials, return_stats=True
        )
        stats = _average_stats(results)
        stats["loss_minus_log_k"] = ranks.mean(loss) - math.log(self.config.num_prototypes)
        return stats

    def end_step(self, step: int, assign_features: Tensor, rows: Tensor) -> None:
        """Let the features [A, B, D] of this step's images join the queue."""
        if self.queue is not None and step >= self._queue_start:
            self.queue.update(assign_features)

    def release(self) -> None:
        """Let go of the other processes."""
        self._group = None

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it; all processes call it."""
        if self.queue is None:
            return {}
        return {
            "queue.storage": torch.cat(ranks.gather(self.queue.storage), 1),
            "queue.position": self.queue.get_extra_state(),
        }

    def restore(self, tensors: dict[str, Tensor], processes: int) -> None:
        """Put back what `tensors` returned in that many processes."""
        if self.queue is not None:
            storage, position = queues.deal(
                tensors["queue.storage"], tensors["queue.position"], processes
            )
            self.queue.storage.copy_(storage)
            self.queue.set_extra_state(position)


def _average_stats(results: list[tuple[Tensor, Stats]]) -> Stats:
    return {name: average([stats[name] for _, stats in results]) for name in results[0][1]}


def average(values: list[Tensor]) -> Tensor:
    """Mean of numbers; one alone stays as it is."""
    if len(values) == 1:
        return values[0]
    every = torch.stack(values)
    return (every if every.is_floating_point() else every.double()).mean(0)
