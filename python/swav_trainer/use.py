"""What a finished run is good for: `swav eval`, `embed`, `assign` and `export`."""

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tyro.conf import Positional, arg

import swav_kernels as sk
from swav_trainer import checkpoint, data
from swav_trainer.build import build_model, pick_device
from swav_trainer.config import Config
from swav_trainer.data import Dataset, Part
from swav_trainer.errors import TrainerError, printable
from swav_trainer.evaluation import evaluate, features_of, rounded
from swav_trainer.model import Model, Projection
from swav_trainer.settings import FILE, resolve_data
from swav_trainer.settings import load as load_settings
from swav_trainer.table import scores_table

Run = Positional[Path]
Data = Annotated[str | None, arg(help="in place of the run's own images: folder:PATH or a name")]
File = Annotated[Positional[Path], arg(help="to write")]


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of the commands."""
    tyro.cli(COMMANDS[command], args=list(arguments), prog=f"swav {command}")
    return 0


def eval_run(run: Run, data: Data = None, json_file: Path | None = None) -> None:
    """Score the features of a run by neighbours, a linear probe and few labels.

    Args:
        run: folder of a run.
        data: other images, whose classes are then told apart.
        json_file: where to write the table too.
    """
    settings, dataset, model = open_run(run, data)
    untrained = build_model(settings, dataset.num_channels, pick_device(settings.device))
    scores, _ = evaluate(settings, dataset, model, untrained)
    Console(highlight=False).print(scores_table(scores))
    if json_file is not None:
        text = json.dumps(rounded(scores), indent=1) + "\n"
        _write(json_file, lambda: json_file.write_text(text, encoding="utf-8"))


def embed(run: Run, file: File, data: Data = None) -> None:
    """Write the features of all images as a NumPy archive.

    It holds `features` [N, dim], `labels` [N], `classes`, `names` [N] (places in the set for images
    without files) and `held_out` [N].

    Args:
        run: folder of a run.
        file: .npz file.
        data: other images.
    """
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

    _write(file, write)
    print(f"{len(features)} features of length {features.shape[1]}: {printable(file)}")


def assign(
    run: Run, file: File, data: Data = None, kind: Literal["nearest", "balanced"] = "nearest"
) -> None:
    """Write each image's prototype as a table: name, held_out, class, prototype, score.

    Args:
        run: folder of a run.
        file: .csv file.
        data: other images.
        kind: the nearest prototype, or the largest of the codes that use all prototypes alike.
    """
    settings, dataset, model = open_run(run, data)
    features = torch.cat(features_of(settings, dataset, Projection(model)))
    scores = features @ model.prototypes.weight.detach().float().cpu().T  # [N, K]
    chosen = scores
    if kind == "balanced":
        # to balance a whole set takes more iterations than to train does
        chosen = sk.sinkhorn(scores, iterations=BALANCING, epsilon=settings.epsilon)
    prototypes = chosen.argmax(1)
    rows = zip(
        _names(dataset), _held_out(dataset).int().tolist(),
        (dataset.classes[label] for label in _labels(dataset).tolist()), prototypes.tolist(),
        scores.gather(1, prototypes.unsqueeze(1)).flatten().tolist(),
    )  # fmt: skip

    def write() -> None:
        with file.open("w", newline="", encoding="utf-8", errors="replace") as opened:
            writer = csv.writer(opened)
            writer.writerow(("name", "held_out", "class", "prototype", "score"))
            writer.writerows((*row[:4], f"{row[4]:.6f}") for row in rows)

    _write(file, write)
    used = len(prototypes.unique())
    print(f"{len(prototypes)} images, {used} of {scores.shape[1]} prototypes: {printable(file)}")


def export(run: Run, file: File) -> None:
    """Write the backbone's weights, for a ResNet under torchvision's names.

    `torchvision.models.resnet50(weights=None).load_state_dict(..., strict=False)` takes them; only
    the classifier is missing.

    Args:
        run: folder of a run.
        file: .safetensors file, or .pth for torch.load.
    """
    settings = load_settings(run / FILE)
    tensors, _, problem = checkpoint.load(run / checkpoint.NAME)
    if problem:
        print(problem)
    prefix = "model.backbone."
    weights = {
        name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)
    }
    if file.suffix == ".safetensors":
        _write(file, lambda: save_file(weights, file, metadata={"arch": settings.arch}))
    elif file.suffix in (".pth", ".pt"):
        _write(file, lambda: torch.save(weights, file))
    else:
        raise TrainerError(f"export writes .safetensors or .pth files, got {printable(file.name)}")
    print(f"{len(weights)} tensors of {settings.model or settings.arch}: {printable(file)}")


BALANCING = 20
COMMANDS: dict[str, Callable[..., None]] = {
    "eval": eval_run, "embed": embed, "assign": assign, "export": export
}  # fmt: skip


def open_run(run: Path, other_data: str | None) -> tuple[Config, Dataset, Model]:
    """Settings, images and trained model of a run; bad files are left out and named."""
    if not run.is_dir():
        raise TrainerError(f"no folder {printable(run)}: it wants the folder of a run")
    settings = load_settings(run / FILE)
    own_channels = None
    if other_data is not None:
        own_channels = data.load(settings).num_channels if settings.folder is None else 3
        settings = dataclasses.replace(settings, data=resolve_data(other_data))
    dataset = data.load(settings)
    if own_channels not in (None, dataset.num_channels):
        raise TrainerError(
            f"{dataset.name} has images of {dataset.num_channels} channels, the run learned from "
            f"{own_channels}"
        )
    parts = (part.readable(settings.workers) for part in (dataset.train, dataset.test))
    dataset = dataclasses.replace(dataset, **dict(zip(("train", "test"), parts)))
    if note := dataset.note_on_bad_files():
        print(note)
    model = build_model(settings, dataset.num_channels, pick_device(settings.device))
    tensors, _, problem = checkpoint.load(run / checkpoint.NAME)
    if problem:
        print(problem)
    checkpoint.restore_model(model, tensors, run / checkpoint.NAME)
    return settings, dataset, model.eval()


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


def _write(file: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise TrainerError(f"cannot write {printable(file)}: {error.strerror}") from error
    except (RuntimeError, SafetensorError) as error:  # torch.save, safetensors
        reason = str(error).splitlines()[0]
        raise TrainerError(f"cannot write {printable(file)}: {reason}") from error
