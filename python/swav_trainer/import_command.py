"""`swav import`: a run's folder from released weights."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from torch import Tensor
from tyro.conf import Positional, arg

from swav_trainer import checkpoint, foreign, released, weights
from swav_trainer.build import build_model, pick_device
from swav_trainer.config import FOLDER_PREFIX, Config
from swav_trainer.download import check_sha256, download
from swav_trainer.errors import TrainerError, printable
from swav_trainer.settings import FILE, load_preset, resolve_data, save
from swav_trainer.sources import IN_MEMORY

IMAGE_SIZE = 224  # pixels of the released networks' global crops
NUM_CHANNELS = 3

Source = Annotated[Positional[str], arg(help="a file, or an address that begins with https://")]
Folder = Annotated[Positional[Path], arg(help="of the new run")]


def import_run(
    source: Source, run: Folder, data: str | None = None, sha256: str | None = None
) -> None:
    """Make a run of a ResNet-50 that SwAV's released code or VISSL has trained.

    eval, embed, assign and export take it as they take any run; sizes come from the file. The
    network normalises images itself, as it was trained to. Files of torch.save are read without
    running the code that they might hold.

    Args:
        source: the checkpoint.
        run: folder to make.
        data: images of the run, folder:PATH; without them each command wants its own --data.
        sha256: of the file, which is refused if it has another.
    """
    if any((run / name).exists() for name in (FILE, checkpoint.NAME)):
        raise TrainerError(f"{printable(run)} holds a run already: name another folder")
    if data in IN_MEMORY:
        raise TrainerError(f"released networks want images in colour, --data {data} has none")
    settings, tensors = _read(source, sha256)
    settings = dataclasses.replace(
        settings, data=FOLDER_PREFIX if data is None else resolve_data(data)
    )
    model = build_model(settings, NUM_CHANNELS, pick_device("cpu"))
    wanted = model.state_dict()
    for name, tensor in tensors.items():
        if name not in wanted or tensor.shape != wanted[name].shape:
            shape = list(wanted[name].shape) if name in wanted else "no such tensor"
            raise TrainerError(
                f"{printable(source)} is no {settings.arch}: {printable(name)} has shape "
                f"{list(tensor.shape)}, wanted {shape}"
            )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names that are missing
        reason = " ".join(str(error).split())[:200]
        raise TrainerError(f"{printable(source)} is no {settings.arch}: {reason}") from error
    model.prototypes.normalize_()
    try:
        run.mkdir(parents=True, exist_ok=True)
        save(settings, run / FILE)
    except OSError as error:
        raise TrainerError(f"cannot write to {printable(run)}: {error.strerror}") from error
    values = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint.save(run / checkpoint.NAME, values, {"imported": printable(source)})
    print(
        f"{settings.arch} with {settings.num_prototypes} prototypes of length "
        f"{settings.feature_dim}: {printable(run)}"
    )


def _read(source: str, sha256: str | None) -> tuple[Config, dict[str, Tensor]]:
    """Settings of the network in the file or at the address, and its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(source)
        if "://" in source:
            file = Path(folder) / (Path(urlsplit(source).path).name or "download")
            download(source, file)
        if not file.is_file():
            raise TrainerError(f"no file {printable(file)}")
        if sha256 is not None:
            check_sha256(file, sha256)
        content = weights.read(file)
    tensors = foreign.translate(content, printable(source))
    sizes = foreign.sizes(tensors, printable(source))
    settings = dataclasses.replace(
        load_preset("folder"), **sizes, model=f"{released.MODULE}{sizes['arch']}",
        head_batch_norm=False, crops=f"2x{IMAGE_SIZE}", areas=((0.14, 1.0),),
    )  # fmt: skip
    return settings, tensors
