"""What the page shows of one run: what its files say, and what its weights make of its images."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from swav_trainer.config import Config
from swav_trainer.data import Dataset
from swav_trainer.evaluation import Scores, features_of
from swav_trainer.model import Model, Projection

NAME = "report.html"  # in the folder of a run


@dataclass(frozen=True)
class Sight:
    """Images, and where a trained network puts them."""

    dataset: Dataset
    projected: Tensor  # [N, D] of the training images
    prototypes: Tensor  # [K, D]
    features: Tensor  # [M, dim] of the held-out images

    @property
    def is_labelled(self) -> bool:
        """True if labels tell images apart."""
        return len(self.dataset.classes) > 1

    @classmethod
    def of(cls, config: Config, dataset: Dataset, model: Model, features: Tensor) -> "Sight":
        """Look at a trained model, whose features of the held-out images are known."""
        projected = features_of(config, dataset, Projection(model))[0]
        return cls(dataset, projected, model.prototypes.weight.detach().float().cpu(), features)


@dataclass(frozen=True)
class View:
    """One run; without `sight` if its weights or its images are missing."""

    name: str
    config: Config
    lines: list[dict[str, Any]]  # of metrics.jsonl
    scores: dict[str, Scores]  # empty before the evaluation
    seconds: float
    machine: dict[str, str | int]
    note: str = ""  # what the reader should know of its files
    sight: Sight | None = None

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines that tell of a step."""
        return [line for line in self.lines if "loss" in line]

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """What was raised."""
        return [line["alarm"] for line in self.lines if "alarm" in line]
