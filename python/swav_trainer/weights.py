"""Weights in files: of a run, exported ones, and those of others, which may hold anything."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from swav_trainer import saved
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable

PREFIX = "model.backbone."  # of the backbone's tensors in a checkpoint


def of_run(run: Path, config: Config) -> tuple[dict[str, Tensor], str]:
    """Return a run's backbone by the names of its own, and what is wrong with the checkpoint."""
    tensors, _, problem = saved.load(run, config)
    names = (name for name in tensors if name.startswith(PREFIX))
    return {name.removeprefix(PREFIX): tensors[name] for name in names}, problem


def read(file: Path) -> dict[str, Any]:
    """Read a .safetensors file, or one of torch.save in which code is refused.

    Raises:
        TrainerError: it cannot be read, is damaged, or holds something other than tensors by name.
    """
    shown = printable(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        _refuse_bombs(file)
        with warnings.catch_warnings():  # of a pickle protocol that it may not know
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except TrainerError:
        raise
    except OSError as error:
        raise TrainerError(f"cannot read {shown}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TrainerError(f"{shown} is no safetensors file, or a damaged one ({error})") from error
    except pickle.UnpicklingError as error:
        raise TrainerError(
            f"{shown} is refused: it holds code or objects beside tensors, which can run anything "
            "when loaded, or is no file of torch.save; save its state_dict alone"
        ) from error
    except Exception as error:  # any bytes may come
        raise TrainerError(
            f"{shown} is no file of torch.save, or a damaged one ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise TrainerError(f"{shown} holds {type(content).__name__}, not tensors by name")
    return content


def _refuse_bombs(file: Path) -> None:
    """Refuse an archive that would unfold to more than it is: torch.save packs nothing."""
    if not zipfile.is_zipfile(file):
        return
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        unfolded = sum(member.file_size for member in archive.infolist())
    if unfolded > size:
        raise TrainerError(
            f"{printable(file)} is refused: its {size} bytes unfold to {unfolded}, and torch.save "
            "packs nothing"
        )
