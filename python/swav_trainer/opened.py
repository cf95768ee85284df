"""A finished run, opened: its settings, images and trained model; and the files written of it."""

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from safetensors import SafetensorError
from tyro.conf import Positional, arg

from swav_trainer import data, ranks, saved
from swav_trainer.build import pick_device
from swav_trainer.config import FOLDER_PREFIX, Config
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError, printable
from swav_trainer.model import Model
from swav_trainer.settings import FILE, load, resolve_data
from swav_trainer.sources import IN_MEMORY

Run = Positional[Path]
Data = Annotated[str | None, arg(help="in place of the run's own images: folder:PATH or a name")]
File = Annotated[Positional[Path], arg(help="to write")]
PATIENCE = timedelta(hours=2)  # between the first and the last process to have embedded its share


def open_run(
    run: Path, other_data: str | None, shared: bool = False
) -> tuple[Config, Dataset, Model]:
    """Return settings, images and trained model of a run; bad files are left out and named.

    Args:
        run: its folder.
        other_data: images in place of its own, or None.
        shared: join the processes that torchrun has started, if any.

    Raises:
        TrainerError: the folder holds no run, or the images cannot be used.
    """
    settings = load_settings(run)
    if shared:
        ranks.join(settings.device, PATIENCE)
    if other_data is None and settings.data == FOLDER_PREFIX:
        raise TrainerError(
            f"the run in {printable(run)} was imported without images: give --data folder:PATH"
        )
    own_channels = None
    if other_data is not None:
        own_channels, _ = own_images(settings)
        settings = dataclasses.replace(settings, data=resolve_data(other_data))
    dataset = data.load(settings)
    if own_channels not in (None, dataset.num_channels):
        raise TrainerError(
            f"{dataset.name} has images of {dataset.num_channels} channels, the run learned from "
            f"{own_channels}"
        )
    parts = (part.readable(settings.workers) for part in (dataset.train, dataset.test))
    dataset = dataclasses.replace(dataset, **dict(zip(("train", "test"), parts)))
    if ranks.is_main() and (note := dataset.note_on_bad_files()):
        print(note)
    device = pick_device(settings.device)
    model, problem = saved.trained(run, settings, dataset.num_channels, device)
    if ranks.is_main() and problem:
        print(problem)
    return settings, dataset, model.eval()


def load_settings(run: Path) -> Config:
    """Return the settings of a run; raise TrainerError if there is none."""
    if not run.is_dir():
        raise TrainerError(f"no folder {printable(run)}: it wants the folder of a run")
    return load(run / FILE)


def own_images(settings: Config) -> tuple[int, int]:
    """Return channels and pixels of a side of the whole images that a run's features are of."""
    if settings.data not in IN_MEMORY:
        return 3, settings.eval_size
    images = data.load(settings).train.images
    return int(images.shape[1]), int(images.shape[-1])


def check_place(file: Path) -> None:
    """Raise TrainerError, before the work, if a file's folder is missing."""
    if not file.parent.is_dir():
        raise TrainerError(f"cannot write {printable(file)}: no folder {printable(file.parent)}")


def write_file(file: Path, write: Callable[[], object]) -> None:
    """Write a file; raise TrainerError if that cannot be done."""
    try:
        write()
    except OSError as error:
        raise TrainerError(f"cannot write {printable(file)}: {error.strerror}") from error
    except (RuntimeError, SafetensorError) as error:  # torch.save, safetensors
        reason = str(error).splitlines()[0]
        raise TrainerError(f"cannot write {printable(file)}: {reason}") from error
