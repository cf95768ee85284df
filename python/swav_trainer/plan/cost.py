"""What a plan costs: memory counted from one step of the network, time measured on real steps."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from swav_trainer.build import build_model, pick_device
from swav_trainer.config import Config
from swav_trainer.data import Dataset
from swav_trainer.engine import Trainer

COUNTED = 4  # images of the step whose memory is counted
TIMED, STEPS = 16, 4  # images and steps that are timed
COPIES = 4  # of the weights: themselves, gradient, two averages of the optimiser
# for buffers that come and go: with it ResNet-18 on 2x96+4x48 needs 15.8 MiB an image, where the
# process grew by 16.1 MiB for each of 32 more
MARGIN = 1.3
OVERHEAD = 0.25 * 2**30  # what the libraries take once they run, measured on a CPU


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step."""

    fixed: float
    an_image: float

    def of(self, images: int) -> float:
        """Bytes with so many images at a time."""
        return OVERHEAD + MARGIN * (self.fixed + images * self.an_image)


def memory(config: Config, num_channels: int) -> Memory:
    """Count the weights, and what one forward pass keeps for the backward pass."""
    model = build_model(config, num_channels, torch.device("cpu"))
    weights = {x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    crops = [
        torch.rand(kind.count * COUNTED, num_channels, kind.size, kind.size)
        for kind in config.crop_kinds
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model(crops)  # kept alive: no storage is used twice
    del features
    inputs = sum(x.nbytes for x in crops)
    return Memory(COPIES * sum(weights.values()), (sum(kept.values()) + inputs) / COUNTED)


def seconds_an_image(config: Config, dataset: Dataset) -> float:
    """Train a few small steps on real files, crops and all."""
    small = dataclasses.replace(
        config, batch_size=TIMED, effective_batch=0, queue_length=0, epochs=1, tracker="none",
    )  # fmt: skip
    for steps in (1, STEPS):  # the first starts threads and fills caches
        images = torch.arange(steps * TIMED)  # a survey has found that there are as many
        part = dataset.train.take(images)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(small, dataclasses.replace(dataset, train=part), Path(folder))
            trainer.train(None)
    return trainer.seconds / (STEPS * TIMED)


def device_name(config: Config) -> str:
    """Where the steps are timed."""
    device = pick_device(config.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"
