"""`swav eval`: the table of a run again, or the protocols of the literature by name."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import FlagCreatePairsOff, arg

from swav_trainer import ranks
from swav_trainer.build import build_model, pick_device
from swav_trainer.config import Config
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError, printable
from swav_trainer.evaluation import Scores, evaluate, features_of, rounded
from swav_trainer.model import Model
from swav_trainer.opened import Data, Run, check_place, open_run, write_file
from swav_trainer.protocols import finetune, online, probe
from swav_trainer.protocols.subset import need_labels
from swav_trainer.protocols.svm import svm as support_vectors
from swav_trainer.table import scores_table

NEIGHBOURS = (10, 20, 100, 200)


@dataclasses.dataclass(frozen=True)
class Protocols:
    """What to measure in place of the table."""

    knn: bool = False
    """10, 20, 100 and 200 neighbours; torchrun shares the work."""
    linear: bool = False
    """Linear probe on frozen features, of several rates and decays the best one."""
    linear_crops: bool = False
    """Linear probe trained on crops, with the paper's schedule."""
    semi: str = ""
    """Fine-tuning on these per cents of the labels: 1,10."""
    svm: bool = False
    """SVMs on all labels and on 1 to 16 a class."""
    epochs: int | None = None
    """Of the probes and the fine-tuning, in place of each one's own."""
    rates: tuple[float, float] | None = None
    """Learning rates of --semi: the classifier's and the network's."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Per cents of the labels.

        Raises:
            TrainerError: they are no per cents.
        """
        try:
            shares = tuple(float(text) for text in self.semi.split(",") if self.semi)
        except ValueError:
            shares = (0.0,)
        if not all(0 < share <= 100 for share in shares):
            raise TrainerError(
                f"--semi wants per cents of the labels such as 1,10, got {printable(self.semi)!r}"
            )
        return shares

    def check(self) -> bool:
        """Tell whether any is asked for; refuse what cannot be done.

        Raises:
            TrainerError: it cannot be done.
        """
        alone = self.linear or self.linear_crops or bool(self.shares) or self.svm
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (alone or not self.knn):
            raise TrainerError("processes share --knn alone: evaluate all else without torchrun")
        if self.epochs is not None and self.epochs < 1:
            raise TrainerError(f"--epochs must be at least 1, got {self.epochs}")
        if self.rates is not None and not (self.rates[0] > 0 and self.rates[1] >= 0):
            raise TrainerError(
                "--rates wants one above 0 for the classifier and one of at least 0 for the "
                f"network, got {self.rates[0]:g} {self.rates[1]:g}"
            )
        if self.rates is not None and not self.shares:
            raise TrainerError("--rates is of --semi, which is not asked for")
        if self.epochs is not None and not (self.linear or self.linear_crops or self.shares):
            raise TrainerError("--epochs is of --linear, --linear-crops and --semi: ask for one")
        return self.knn or alone


def eval_run(
    run: Run,
    protocols: Annotated[FlagCreatePairsOff[Protocols], arg(name="")],
    data: Data = None,
    json_file: Path | None = None,
) -> None:
    """Score the features of a run: the table that the training ended with, or what is asked for.

    Args:
        run: folder of a run.
        protocols: what to measure in place of the table.
        data: other images, whose classes are then told apart.
        json_file: where to write the figures too.
    """
    asked = protocols.check()
    if json_file is not None:
        check_place(json_file)
    settings, dataset, model = open_run(run, data, shared=protocols.knn)
    console = Console(highlight=False, quiet=not ranks.is_main())
    if asked:
        scores = {"swav": _measure(console, settings, dataset, model, protocols)}
    else:
        need_labels(dataset, "the evaluation")
        untrained = build_model(settings, dataset.num_channels, pick_device(settings.device))
        scores, _ = evaluate(settings, dataset, model, untrained)
        console.print(scores_table(settings, scores))
    if json_file is not None and ranks.is_main():
        text = json.dumps(rounded(scores), indent=1) + "\n"
        write_file(json_file, lambda: json_file.write_text(text, encoding="utf-8"))
    ranks.leave()


def _measure(
    console: Console, config: Config, dataset: Dataset, model: Model, protocols: Protocols
) -> Scores:
    """Take the figures one after the other and print each."""
    scores: Scores = {}
    for name, value in _figures(console, config, dataset, model, protocols):
        scores[name] = value
        console.print(f"{name:<20}{value:6.1f}")
    return scores


def _figures(
    console: Console, config: Config, dataset: Dataset, model: Model, protocols: Protocols
) -> Iterator[tuple[str, float]]:
    num_classes = need_labels(dataset, "the evaluation")
    labels = dataset.train.labels, dataset.test.labels
    console.print("per cent", markup=False)
    if protocols.knn:
        votes = online.knn(config, dataset, model.backbone, NEIGHBOURS)
        yield from ((f"knn{count}", value) for count, value in votes.items())
    if protocols.linear or protocols.svm:
        features = features_of(config, dataset, model.backbone)
    if protocols.linear:
        device = next(model.parameters()).device
        on_device = features[0].to(device), features[1].to(device)
        epochs = protocols.epochs or probe.EPOCHS
        figures, told = probe.linear(on_device, labels, num_classes, config.seed, epochs)
        yield from figures.items()
        told = f"linear: {told}, best on a part of the training images"
        console.print(told, markup=False, soft_wrap=True)
    if protocols.svm:
        yield from support_vectors(features, labels, num_classes, config.seed)
    if protocols.linear_crops:
        recipe = _changed(finetune.OFFICIAL_LINEAR, protocols)
        yield from finetune.linear_on_crops(config, dataset, model, num_classes, recipe).items()
    for share in protocols.shares:
        recipe = _changed(finetune.recipe_for(share), protocols)
        if protocols.rates is not None:
            rate, network_rate = protocols.rates
            recipe = dataclasses.replace(recipe, rate=rate, network_rate=network_rate)
        figures = finetune.semi_supervised(config, dataset, model, num_classes, share, recipe)
        yield from figures.items()


def _changed(recipe: finetune.Recipe, protocols: Protocols) -> finetune.Recipe:
    return dataclasses.replace(recipe, epochs=protocols.epochs or recipe.epochs)
