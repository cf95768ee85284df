"""The training loop: crops, loss, optimiser step, telemetry, checkpoints."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swav_trainer import accumulation, batch_norm, checkpoint, optim, ranks, saved, seeds
from swav_trainer.alarm import Alarm, Watch
from swav_trainer.build import build_model, pick_device
from swav_trainer.config import Config
from swav_trainer.data import Dataset
from swav_trainer.deepcluster import DeepCluster
from swav_trainer.errors import TrainerError, printable
from swav_trainer.loader import Loader
from swav_trainer.log import Log
from swav_trainer.model import Network
from swav_trainer.overlap import Balancing
from swav_trainer.protocols.online import online_knn
from swav_trainer.signals import Stop
from swav_trainer.swav import SwAV
from swav_trainer.telemetry import Probe

if TYPE_CHECKING:
    from swav_trainer.sharding import Shards


class Trainer:
    """A run: its model, optimiser, queue and position.

    Args:
        config: the settings.
        dataset: the images.
        folder: where checkpoint and log go.
    """

    def __init__(self, config: Config, dataset: Dataset, folder: Path) -> None:
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.device = pick_device(config.device)
        self.dtype = getattr(torch, config.dtype)
        self.loader = Loader(dataset.train, config)
        if self.loader.steps == 0:
            raise TrainerError(
                f"{len(dataset.train)} training images make no batch of {config.step_images}: "
                "lower --batch-size or --effective-batch"
            )
        self.num_steps = self.loader.steps * config.epochs
        self.model = build_model(config, dataset.num_channels, self.device)
        objective = SwAV if config.method == "swav" else DeepCluster
        self.objective = objective(config, self.model, self.num_steps, self.loader.steps)
        if config.compile:
            self.model.backbone.compile()
        self.network: torch.nn.Module = self.model
        self.shards: Shards | None = None
        if ranks.count() > 1:
            batch_norm.synchronise(self.model, config.batch_norm_group)
            if config.shard:
                from swav_trainer import sharding  # torch takes a second to import it

                self.shards = sharding.Shards(self.model, self.device)
            else:
                self.network = ranks.share_gradients(Network(self.model), bool(config.model))
        self.optimizer = optim.build(self.model, config)
        # scales the loss so that float16 gradients do not vanish; off, it changes nothing
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.autocast == "float16")
        self.watch = Watch(config)
        self.probe = Probe(config, self.num_steps, self.device)
        self.clock = self.probe.clock
        self.told: dict[str, float] = {}  # by the probe at the last step
        self.step = 0
        self.seconds = 0.0
        self.stop = Stop()

    def train(self, log: Log | None) -> bool:
        """Train to the end; False if it was stopped first. Either way the checkpoint is written."""
        started = time.perf_counter() - self.seconds
        for alarm in self.watch.begin():
            if log is not None:
                log.alarm(alarm)
        with self.stop.listening(), contextlib.closing(self.loader):
            while self.step < self.num_steps:
                epoch, first = divmod(self.step, self.loader.steps)
                self.model.train()
                stops = False
                for loss, stats in self._steps(epoch, first):
                    self.step += 1
                    self.seconds = time.perf_counter() - started
                    self._observe(log, loss, stats)
                    stops = ranks.agree(self.stop.is_asked, self.device)
                    if stops and self.step % self.loader.steps:
                        self.save()
                        return False
                # first: a checkpoint of this step takes this epoch's figure for written
                if self.config.knn_every and (epoch + 1) % self.config.knn_every == 0:
                    accuracy = online_knn(self.config, self.dataset, self.model.backbone)
                    if log is not None:
                        log.neighbours(self.step, accuracy)
                is_last = self.step == self.num_steps
                if stops or is_last or (epoch + 1) % self.config.checkpoint_every == 0:
                    self.save()
                if stops and not is_last:
                    return False
        return True

    def _steps(self, epoch: int, first: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Take the steps of an epoch; their losses and telemetry."""
        if first == 0:
            self.objective.begin_epoch(self, epoch)
        if self.loader.share > self.loader.batch:
            for step in range(first, self.loader.steps):
                yield accumulation.train_step(self, epoch, step)
            return
        for step, crops in enumerate(self.loader.batches(epoch, first), first):
            yield self._train_step(crops, self.loader.rows(epoch, step))

    def _train_step(self, crops: list[Tensor], rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.begin_step()
        balancing = Balancing(self.objective, self.device) if self.config.overlap else None
        with self.chance(), self.clock.part("network"):
            features = self.project(self.network, crops, balancing)
        with self.clock.part("loss"):
            potentials = None if balancing is None else balancing.finish()
            loss, stats = self.objective.loss(features, rows, potentials)
        self.learn(loss)
        self.end_step(self.assigned(features), rows)
        return loss.detach(), stats

    @contextlib.contextmanager
    def chance(self, part: int = 0) -> Iterator[None]:
        """Seed what the network draws, such as dropout, by the place in the run."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seeds.number(self.config.seed, self.step, part, ranks.index()))
            yield

    def learn(self, loss: Tensor) -> None:
        """Add the gradients of a loss, or of a part of it, to the parameters'."""
        with self.clock.part("network"):
            self.scaler.scale(loss).backward()

    def begin_step(self) -> None:
        """Set the learning rate, normalise the prototypes, forget the gradients."""
        rate = optim.learning_rate(self.step, self.num_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for head in self.model.prototype_heads:
            head.normalize_()
        self.optimizer.zero_grad(set_to_none=True)

    def project(
        self, network: torch.nn.Module, crops: list[Tensor], balancing: Balancing | None = None
    ) -> Tensor:
        """Crops as the loader gives them -> features [V, B, D]."""
        half = self.config.autocast
        images = len(crops[0]) // self.config.crop_kinds[0].count

        def by_crop(features: Tensor) -> Tensor:
            return features.to(self.dtype).view(-1, images, self.config.feature_dim)

        def begin(features: Tensor) -> None:
            assert balancing is not None
            with torch.autocast(self.device.type, enabled=False):
                balancing.start(self.assigned(by_crop(features)))

        with torch.autocast(self.device.type, getattr(torch, half, None), enabled=half != "off"):
            crops = [x.to(self.device, self.dtype, non_blocking=True) for x in crops]
            return by_crop(network(crops, None if balancing is None else begin))

    def assigned(self, features: Tensor) -> Tensor:
        """Those of the crops that have codes, [A, B, D], of all features [V, B, D]."""
        return features.detach()[list(self.config.assign)]

    def end_step(self, assign_features: Tensor, rows: Tensor) -> None:
        """Step by the gradients; the objective sees the features [A, B, D] of the images."""
        if ranks.count() > 1:  # they are used outside the network, whose gradients are shared
            for head in self.model.prototype_heads:
                if head.weight.grad is not None:
                    head.weight.grad = ranks.mean(head.weight.grad)
        self.scaler.unscale_(self.optimizer)
        if self.step < self.config.freeze_steps or not self.objective.learns_prototypes:
            for head in self.model.prototype_heads:
                head.weight.grad = None
        if self.config.clip_gradient:
            self._clip_gradient(self.config.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        prototypes, queue = self.model.prototypes.weight, self.objective.queue
        self.told = self.probe.see(
            self.step + 1, assign_features, prototypes, queue, self.loader.waited
        )
        self.objective.end_step(self.step, assign_features, rows)

    def _clip_gradient(self, largest: float) -> None:
        if self.shards is not None:
            self.shards.clip_gradient(largest)
        else:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest)

    def release(self) -> None:
        """Let go of the other processes."""
        self.network = self.model
        batch_norm.release(self.model)
        self.objective.release()

    def _observe(self, log: Log | None, loss: Tensor, stats: dict[str, Tensor]) -> None:
        loss = ranks.mean(loss)
        values = dict(zip(("loss", *stats), torch.stack([loss, *_like(stats, loss)]).tolist()))
        if not math.isfinite(values["loss"]):
            raise TrainerError(
                f"the loss is {values['loss']} at step {self.step}: lower --learning-rate, or look "
                "for images that are not numbers"
            )
        values |= self.told
        alarms = self.watch.see(self.step, values["loss"], values)
        rate = self.optimizer.param_groups[0]["lr"]
        if log is None:
            return
        log.step(self.step, self.seconds, rate, values)
        for alarm in alarms:
            log.alarm(alarm)

    def save(self) -> None:
        """Write the checkpoint; all processes call it."""
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer)
        tensors |= self.objective.tensors()
        state = {
            "step": self.step,
            "data": self.dataset.fingerprint,
            "seconds": self.seconds,
            "processes": ranks.count(),
            "scaler": self.scaler.state_dict(),
            "recent": list(self.watch.recent),
            "fits": list(self.watch.fits),
            "idle": self.probe.fill.idle.tolist(),
            "alarms": [vars(alarm) for alarm in self.watch.raised],
        }
        saved.save(self.folder, self.config, tensors, state)

    def restore(self) -> str:
        """Go back to the checkpoint in the run's folder; returns what to know of it, or ""."""
        path = saved.path(self.folder, self.config)
        places = {} if self.shards is None else self.shards.places(self.optimizer)
        tensors, state, problem = saved.load(self.folder, self.config, places, set_aside=True)
        if state.get("data") != self.dataset.fingerprint:
            raise TrainerError(
                f"the images of {self.dataset.name} are not those that the run in "
                f"{printable(self.folder)} began with: another split would mix training and "
                "held-out images; put them back, or start a new run"
            )
        checkpoint.restore_model(self.model, tensors, path)
        try:
            checkpoint.restore_optimizer(self.optimizer, tensors)
            self.objective.restore(tensors, int(state["processes"]))
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.scaler.load_state_dict(state["scaler"])
            self.watch.recent.extend(state["recent"])
            self.watch.fits.extend(state["fits"])
            self.probe.fill.idle = torch.tensor(state["idle"])
            self.watch.raised = [Alarm(**values) for values in state["alarms"]]
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise checkpoint.does_not_fit(path, error) from error
        return "\n".join(filter(None, (problem, _other_number(int(state["processes"])))))


def _other_number(before: int) -> str:
    """What changes where a run goes on with more or fewer processes, or ""."""
    if before == ranks.count():
        return ""
    return (
        f"{before} process{'es' if before > 1 else ''} wrote the checkpoint and {ranks.count()} go "
        "on with it: from here on the run is the same but for rounding, for what networks draw, "
        "such as dropout, and for rows of the queue that do not divide"
    )


def _like(stats: dict[str, Tensor], loss: Tensor) -> list[Tensor]:
    return [value.to(loss.dtype) for value in stats.values()]
