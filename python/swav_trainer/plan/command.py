"""`swav plan`: look at the images, choose, count, measure, and write a preset."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from swav_trainer import data as images
from swav_trainer import settings
from swav_trainer.config import FOLDER_PREFIX, Config
from swav_trainer.errors import TrainerError, printable
from swav_trainer.plan import cost, rules, survey
from swav_trainer.plan.rules import Choice

GIB = 2**30
TWICE = 4 / 3  # a step in parts embeds all images first: a third of the work again


def main(arguments: Sequence[str]) -> int:
    """Run `swav plan` with its arguments; returns the exit code."""
    tyro.cli(plan, args=list(arguments), prog="swav plan")
    return 0


def plan(
    data: str,
    gpus: int | None = None,
    memory: float | None = None,
    output: Path = Path("plan.toml"),
) -> None:
    """Propose settings for a folder of images, with reasons, memory and time.

    Args:
        data: folder:PATH.
        gpus: that it is for; by default those of this machine.
        memory: GiB of each GPU, or of the machine without one; by default what is here.
        output: the preset, for swav train --preset.
    """
    if not data.startswith(FOLDER_PREFIX):
        raise TrainerError(
            f"swav plan is for image folders, --data {FOLDER_PREFIX}PATH, got {printable(data)!r}"
        )
    if output.exists():
        raise TrainerError(f"{printable(output)} is there already: name another --output")
    base = settings.load_preset("folder")
    config = dataclasses.replace(base, data=settings.resolve_data(data))
    dataset = images.load(config)
    found = survey.look(dataset, gpus, memory)
    console = Console(highlight=False)
    console.print(
        f"{found.images} images to learn from in {found.classes} classes, typically "
        f"{found.side} pixels; for {_devices(found)}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    choices = rules.choose(found)
    if not found.gpus:
        choices.append(Choice("device", "cpu", "the plan is for it"))
    config = dataclasses.replace(config, **{x.name: x.value for x in choices})
    needs = cost.memory(config, dataset.num_channels)
    choices += _batch(found, config, needs)
    config = dataclasses.replace(config, **{x.name: x.value for x in choices})
    console.print(_table(choices))
    for line in (_memory_line(found, config, needs), _time_line(found, config, dataset)):
        console.print(line, markup=False, soft_wrap=True)
    _write(output, config, choices)
    many = f"torchrun --nproc-per-node {found.gpus} -m swav_trainer"
    program = many if found.gpus > 1 else "swav"
    line = f"Go on with: {program} train --preset {printable(output)}"
    console.print(line, markup=False, soft_wrap=True)


def _devices(found: survey.Survey) -> str:
    kind = f"{found.gpus} GPU{'s' if found.gpus > 1 else ''}" if found.gpus else "the CPU"
    return f"{kind}, {found.memory / GIB:.1f} GiB"


def _batch(found: survey.Survey, config: Config, needs: cost.Memory) -> list[Choice]:
    """Images in a step, and as many of them at a time as fit.

    Raises:
        TrainerError: two do not fit.
    """
    if needs.of(2) > found.memory:
        raise TrainerError(
            f"{config.arch} with crops {config.crops} needs {needs.of(2) / GIB:.2f} GiB for two "
            f"images, and there are {found.memory / GIB:.2f}: give more --memory, or train a "
            "smaller --arch on smaller --crops"
        )
    devices = max(1, found.gpus)
    step = rules.step_images(found, config.num_prototypes)
    step = max(step, 2 * devices) // devices * devices
    if step > found.images:
        raise TrainerError(
            f"{found.images} images to learn from are too few for {devices} GPUs, two each in a "
            "step: use fewer"
        )
    batch = step // devices
    while batch > 2 and needs.of(batch) > found.memory:
        batch = -(-batch // 2)
    reason = f"two images a prototype, {rules.STEPS_AN_EPOCH} steps an epoch at least"
    if batch * devices == step:
        return [Choice("batch_size", step, reason), Choice("effective_batch", 0, "all fit at once")]
    return [
        Choice("batch_size", batch * devices, f"{batch} at a time fit in the memory of a device"),
        Choice("effective_batch", step, reason),
    ]


def _memory_line(found: survey.Survey, config: Config, needs: cost.Memory) -> str:
    a_device = config.batch_size // max(1, found.gpus)
    return (
        f"Memory: {needs.of(a_device) / GIB:.2f} GiB a device, counted from what one step on "
        f"{cost.COUNTED} images keeps, with {cost.MARGIN - 1:.0%} to spare and "
        f"{cost.OVERHEAD / GIB:.2f} GiB for the libraries."
    )


def _time_line(found: survey.Survey, config: Config, dataset: images.Dataset) -> str:
    if not found.is_here:
        return "Time: not measured, for those GPUs are not here."
    factor = TWICE if config.effective_batch else 1.0
    seconds = factor * cost.seconds_an_image(config, dataset) / max(1, found.gpus)
    epoch = seconds * found.images
    return (
        f"Time: {_clock(epoch * config.epochs)} for {config.epochs} epochs of {_clock(epoch)}, "
        f"measured in {cost.STEPS} steps of {cost.TIMED} images on {cost.device_name(config)}; "
        "larger steps are faster."
    )


def _clock(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _table(choices: Sequence[Choice]) -> Table:
    table = Table("setting", "value", "reason", title=None)
    for choice in choices:
        table.add_row(choice.name, settings.to_toml(choice.value), choice.reason)
    return table


def _write(output: Path, config: Config, choices: Sequence[Choice]) -> None:
    lines = [
        "# Made by swav plan.",
        'base = "folder"',
        f"data = {settings.to_toml(config.data)}",
        *(f"{x.name} = {settings.to_toml(x.value)}  # {x.reason}" for x in choices),
    ]
    try:
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainerError(f"cannot write {printable(output)}: {error.strerror}") from error
