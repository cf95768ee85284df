"""`python -m benchmarks.step`: a whole training step, and what share of it the loss is.

On a CPU the demo's network and recipe; on a GPU ResNet-50 on 2 crops of 224 and 6 of 96 pixels,
batch 64, bfloat16. The step is cut where the loss meets the features, so that its parts can be
timed and their gradients are those of the whole. Losses take turns, step by step.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from swav_trainer import optim
from swav_trainer.config import Config
from swav_trainer.data import Part
from swav_trainer.loader import Loader
from swav_trainer.model import Model
from swav_trainer.settings import load_preset
from torch import Tensor

import swav_kernels as sk
from benchmarks import machine
from benchmarks.baselines import official

PARTS = ("data", "forward", "loss", "backward", "update")
NUM_IMAGES, SIDE = 512, 24  # random ones, as large as the demo's
WARM_UP_STEPS, LEAST_STEPS = 3, 5

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterator[list[Tensor]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each loss; 2 if the device is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--prototypes", type=int, help="in place of the recipe's number")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.step: --device cuda was asked for, but torch sees no CUDA device")
        return 2
    config = recipe(device)
    if options.prototypes is not None:
        config = dataclasses.replace(config, num_prototypes=options.prototypes)
    figures = measure(config, device, options.seconds)
    print(
        f"{config.arch}, batch {config.batch_size}, crops {config.crops}, "
        f"{config.num_prototypes} prototypes; ms a step (share)"
    )
    print(f"{'':<20}{'step':>9}" + "".join(f"{part:>16}" for part in PARTS))
    for name, parts in figures.items():
        total = sum(parts.values())
        cells = (f"{ms:.2f} ({ms / total:.1%})" for ms in parts.values())
        print(f"{name:<20}{total:>9.2f}" + "".join(f"{cell:>16}" for cell in cells))
    if options.json is not None:
        result = {**machine.describe([device]), "step": dataclasses.asdict(config)}
        options.json.write_text(json.dumps(result | {"parts_ms": figures}, indent=1) + "\n")
    return 0


def recipe(device: torch.device) -> Config:
    """Return the demo's settings, or on a GPU those of the paper at batch 64."""
    if device.type == "cpu":
        return load_preset("mnist5k")
    return dataclasses.replace(
        load_preset("folder"), arch="resnet50", batch_size=64, hidden_dim=2048, feature_dim=128,
        num_prototypes=3000, crops="2x224+6x96", epsilon=0.05,
    )  # fmt: skip


def losses(config: Config, device: torch.device) -> dict[str, Loss]:
    """Return the official loss, under autocast's rules on a GPU, and ours."""
    settings = {"temperature": config.temperature, "epsilon": config.epsilon,
                "iterations": config.iterations}  # fmt: skip
    theirs = official.swav_loss if device.type == "cpu" else official.swav_loss_bf16
    return {
        "official": lambda z, c: theirs(z, c, **settings),
        "ours": lambda z, c: sk.swav_loss(z, c, **settings),
        "ours, bfloat16": lambda z, c: sk.swav_loss(z, c, precision="bfloat16", **settings),
    }


def batches(config: Config, device: torch.device) -> Batches:
    """Crops from the trainer's loader; on a GPU ready ones, for its loader runs ahead of it.

    How fast files are cropped says `python -m benchmarks.multicrop`.
    """
    generator = torch.Generator().manual_seed(0)
    if device.type == "cpu":
        images = torch.rand(NUM_IMAGES, 1, SIDE, SIDE, generator=generator)
        loader = Loader(Part(images, torch.zeros(NUM_IMAGES, dtype=torch.int64)), config)
        while True:
            yield from loader.batches(0)
    ready = [
        torch.rand(
            kind.count * config.batch_size, 3, kind.size, kind.size, generator=generator
        ).pin_memory()
        for kind in config.crop_kinds
    ]
    while True:
        yield ready


def measure(config: Config, device: torch.device, seconds: float) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each part, for each loss."""
    torch.manual_seed(0)
    model = Model(config, 1 if device.type == "cpu" else 3).train()
    model.to(device, memory_format=torch.channels_last)
    step = Step(model, optim.build(model, config), batches(config, device), config, device)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in losses(config, device)}
    end = time.perf_counter() + seconds
    least = WARM_UP_STEPS + LEAST_STEPS
    while len(found["official"]) < least or time.perf_counter() < end:
        for name, loss in losses(config, device).items():
            found[name].append(step(loss))
    return {
        name: {part: statistics.median(x[part] for x in taken[WARM_UP_STEPS:]) for part in PARTS}
        for name, taken in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step in timed parts, as the trainer makes it."""

    model: Model
    optimizer: torch.optim.Optimizer
    batches: Batches
    config: Config
    device: torch.device

    def __call__(self, loss: Loss) -> dict[str, float]:
        """Return the milliseconds of each part."""
        marks = [self._now()]
        crops = [x.to(self.device, non_blocking=True) for x in next(self.batches)]
        marks.append(self._now())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            features = self.model(crops).float()
        marks.append(self._now())
        cut = features.detach().requires_grad_()
        prototypes = self.model.prototypes.weight
        loss(cut.view(-1, self.config.batch_size, self.config.feature_dim), prototypes).backward()
        marks.append(self._now())
        features.backward(cut.grad)
        marks.append(self._now())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.prototypes.normalize_()
        marks.append(self._now())
        return {
            part: 1e3 * (end - start)
            for part, start, end in zip(PARTS, marks, marks[1:], strict=False)
        }

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


if __name__ == "__main__":
    raise SystemExit(main())
