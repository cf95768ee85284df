"""The paper's ablations in miniature, and grids of settings: lists of cells to run."""

import dataclasses
import itertools
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swav_trainer.config import FIELDS, Config
from swav_trainer.errors import TrainerError, did_you_mean, printable

Changes = dict[str, Any]

# What each asks, and the settings that are set side by side; the preset's own are {}. Queue and
# crops are for images as small as those of the presets digits and mnist5k.
ABLATIONS: dict[str, tuple[Changes, ...]] = {
    "assignment": ({}, {"assignment": "softmax"}),
    "codes": ({}, {"hard_codes": True}),
    "epsilon": ({"epsilon": 0.01}, {}, {"epsilon": 0.05}, {"epsilon": 0.1}),
    "iterations": ({"iterations": 1}, {}, {"iterations": 10}),
    "queue": (
        {},
        {"queue_length": 1280, "queue_start": 0.1},
        {"queue_length": 1280, "queue_start": 0.5},
    ),
    "crops": ({"crops": "2", "areas": 1}, {"crops": "2+2", "areas": 2}, {}),
    "prototypes": ({"num_prototypes": 10}, {}, {"num_prototypes": 300}),
    "heads": ({}, {"heads": 3}),
    "method": ({}, {"method": "deepcluster"}),
}


@dataclass(frozen=True)
class Cell:
    """Settings to run over all seeds."""

    label: str  # in the table
    folder: str  # what differs from the preset: the same settings have the same one
    config: Config


@dataclass(frozen=True)
class Group:
    """Cells that are read together, as one table."""

    title: str
    cells: tuple[Cell, ...]


def grid(preset: Config, settings: Sequence[str]) -> Group:
    """Every combination of `name=value,value` settings.

    Raises:
        TrainerError: a setting is unknown, named twice or wrong.
    """
    axes: dict[str, list[Any]] = {}
    for text in settings:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise TrainerError(f"--set wants name=value or name=value,value, got {printable(text)}")
        if name in axes:
            raise TrainerError(f"--set {name} is named twice: write --set {name}=value,value")
        if name == "seed":
            raise TrainerError("--set seed: a sweep's seeds are named by --seeds")
        axes[name] = [_read(name, value) for value in _split(values)]
    combinations = itertools.product(*axes.values())
    changes = [dict(zip(axes, values, strict=True)) for values in combinations]
    return Group(" x ".join(axes) or "preset", tuple(_cell(preset, change) for change in changes))


def ablation(preset: Config, names: str) -> list[Group]:
    """Built-in lists, named as in `queue,crops`, or all of them.

    Raises:
        TrainerError: there is none of that name.
    """
    groups = []
    for name in ABLATIONS if names == "all" else names.split(","):
        if name not in ABLATIONS:
            raise TrainerError(
                f"unknown ablation {printable(name)!r}: choose from all, {', '.join(ABLATIONS)}"
                f"{did_you_mean(name, ABLATIONS)}"
            )
        changes = [_fitted(preset, change) for change in ABLATIONS[name]]
        groups.append(Group(name, tuple(_cell(preset, change) for change in changes)))
    return groups


def _fitted(preset: Config, change: Changes) -> Changes:
    """Fill in the preset's sizes: `"2+2"` crops are so many of its first and second kind."""
    if "crops" not in change:
        return change
    kinds = preset.crop_kinds[: change["areas"]]
    counts = change["crops"].split("+")
    texts = [f"{count}x{kind.size}" for count, kind in zip(counts, kinds, strict=True)]
    return {"crops": "+".join(texts), "areas": tuple(kind.area for kind in kinds)}


def _cell(preset: Config, changes: Mapping[str, Any]) -> Cell:
    config = dataclasses.replace(preset, **changes)
    differing = [
        f"{field.name}={getattr(config, field.name)}"
        for field in FIELDS
        if getattr(config, field.name) != getattr(preset, field.name)
    ]
    words = [
        f"{name}={value}"
        for name, value in changes.items()
        if name != "areas" or "crops" not in changes
    ]
    folder = re.sub(r"[^\w.=+,-]+", "_", ",".join(differing)) or "preset"
    return Cell(" ".join(words) or "as the preset", folder, config)


def _split(values: str) -> list[str]:
    """Cut at commas, but for those inside brackets."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _read(name: str, value: str) -> Any:
    """Return a value as the type of its setting; the settings themselves check it."""
    hints = typing.get_type_hints(Config)
    if name not in hints:
        raise TrainerError(f"unknown setting {printable(name)!r}{did_you_mean(name, hints)}")
    if hints[name] is str or typing.get_origin(hints[name]) is typing.Literal:
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise TrainerError(
            f"--set {name}: {printable(value)!r} is neither a number nor a list, true or false"
        ) from error
