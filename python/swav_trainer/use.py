"""What a finished run is good for: the commands, and `swav embed` and `assign`."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

import swav_kernels as sk
from swav_trainer.data import Dataset, Part
from swav_trainer.errors import TrainerError, printable, require
from swav_trainer.eval_command import eval_run
from swav_trainer.evaluation import features_of
from swav_trainer.export import export
from swav_trainer.import_command import import_run
from swav_trainer.model import Projection
from swav_trainer.opened import Data, File, Run, check_place, open_run, write_file


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of the commands."""
    tyro.cli(COMMANDS[command], args=list(arguments), prog=f"swav {command}")
    return 0


def embed(run: Run, file: File, data: Data = None) -> None:
    """Write the features of all images as a NumPy archive.

    It holds `features` [N, dim], `labels` [N], `classes`, `names` [N] (places in the set for images
    without files) and `held_out` [N].

    Args:
        run: folder of a run.
        file: .npz file.
        data: other images.
    """
    check_place(file)
    settings, dataset, model = open_run(run, data)
    features = torch.cat(features_of(settings, dataset, model.backbone))
    arrays = {
        "features": features.numpy(),
        "labels": _labels(dataset).numpy(),
        "classes": np.array(dataset.classes),
        "names": np.array(_names(dataset)),
        "held_out": _held_out(dataset).numpy(),
    }

    def write() -> None:
        with file.open("wb") as opened:  # a name given to savez would get an ending
            np.savez(opened, **arrays)

    write_file(file, write)
    print(f"{len(features)} features of length {features.shape[1]}: {printable(file)}")


def assign(
    run: Run, file: File, data: Data = None, kind: Literal["nearest", "balanced"] = "nearest"
) -> None:
    """Write each image's prototype as a table: name, held_out, class, prototype, score.

    Args:
        run: folder of a run.
        file: .csv file, or .parquet.
        data: other images.
        kind: the nearest prototype, or the largest of the codes that use all prototypes alike.
    """
    if file.suffix not in (".csv", ".parquet"):
        raise TrainerError(f"assign writes .csv or .parquet files, got {printable(file.name)}")
    if file.suffix == ".parquet":
        require("pyarrow", extra="parquet")
    check_place(file)
    settings, dataset, model = open_run(run, data)
    features = torch.cat(features_of(settings, dataset, Projection(model)))
    scores = features @ model.prototypes.weight.detach().float().cpu().T  # [N, K]
    chosen = scores
    if kind == "balanced":
        # to balance a whole set takes more iterations than to train does
        chosen = sk.sinkhorn(scores, iterations=BALANCING, epsilon=settings.epsilon)
    prototypes = chosen.argmax(1)
    table = {
        "name": _names(dataset),
        "held_out": _held_out(dataset).int().tolist(),
        "class": [dataset.classes[label] for label in _labels(dataset).tolist()],
        "prototype": prototypes.tolist(),
        "score": scores.gather(1, prototypes.unsqueeze(1)).flatten().tolist(),
    }
    write_table = _write_parquet if file.suffix == ".parquet" else _write_csv
    write_file(file, lambda: write_table(file, table))
    used = len(prototypes.unique())
    print(f"{len(prototypes)} images, {used} of {scores.shape[1]} prototypes: {printable(file)}")


BALANCING = 20
COMMANDS: dict[str, Callable[..., None]] = {
    "import": import_run,
    "eval": eval_run,
    "embed": embed,
    "assign": assign,
    "export": export,
}


def _write_csv(file: Path, table: dict[str, list[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="replace") as opened:
        writer = csv.writer(opened)
        writer.writerow(table)
        for *values, score in zip(*table.values(), strict=True):
            writer.writerow((*values, f"{score:.6f}"))


def _write_parquet(file: Path, table: dict[str, list[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table), file)


def _parts(dataset: Dataset) -> tuple[Part, Part]:
    return dataset.train, dataset.test


def _labels(dataset: Dataset) -> Tensor:
    return torch.cat([part.labels for part in _parts(dataset)])


def _held_out(dataset: Dataset) -> Tensor:
    return torch.arange(len(_labels(dataset))) >= len(dataset.train)


def _names(dataset: Dataset) -> list[str]:
    names: list[str] = []
    for part in _parts(dataset):
        if isinstance(part.images, Tensor):
            assert part.rows is not None
            names += [str(row) for row in part.rows.tolist()]
        else:
            names += [printable(path) for path in part.images.paths]
    return names
