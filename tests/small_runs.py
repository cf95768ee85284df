"""Runs on digits that take a second, and their first step."""

import dataclasses
from pathlib import Path

from swav_trainer import data
from swav_trainer.engine import Trainer
from swav_trainer.log import Log
from swav_trainer.settings import load_preset
from torch import Tensor

SMALL = dataclasses.replace(load_preset("digits"), epochs=1, width=4, log_every=1)


def trained(settings, folder: Path) -> Trainer:
    """A whole run."""
    trainer = Trainer(settings, data.load(settings), folder)
    with Log(folder, 0, trainer.num_steps, trainer.loader.steps, 1) as log:
        assert trainer.train(log)
    return trainer


def first_loss(settings, folder: Path) -> tuple[Trainer, Tensor, Tensor]:
    """The first step's crops' features and loss, at the first weights."""
    trainer = Trainer(settings, data.load(settings), folder)
    trainer.model.train()
    trainer.begin_step()
    features = trainer.project(trainer.network, next(trainer.loader.batches(0)))
    return trainer, features, trainer.objective.loss(features, trainer.loader.rows(0, 0))[0]
