"""Every setting of a run: one typed, flat dataclass whose values come from a preset."""

import dataclasses
import json
import os
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swav_trainer.errors import TrainerError, did_you_mean, printable
from swav_trainer.ranges import check_ranges

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"
FOLDER_PREFIX = "folder:"
IN_MEMORY = ("mnist5k", "digits")
FILE = "config.toml"  # in the folder of a run
DEFAULT_PRESET = "mnist5k"
ASSIGN_CROPS = 2  # the global crops, whose codes are computed


@dataclass(frozen=True)
class Config:
    """The settings of one run, named as on the command line and in `config.toml`."""

    data: str
    """mnist5k, digits, or folder:PATH with one folder of JPEG or PNG files for each class."""
    holdout: float
    """Share of each class that is held out for the evaluation."""
    seed: int
    """Seeds everything: split, initial weights, order, crops, evaluation."""
    backend: str
    """Backend of the swav_kernels ops: auto, cpu, reference or triton."""
    device: str
    """auto, or a device of torch, such as cpu or cuda."""
    dtype: Literal["float32", "float64"]
    """Of the network and the loss."""
    workers: int
    """Threads that decode and crop files; 0 is one for each core."""

    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images at a time; the last, incomplete batch of an epoch is dropped."""
    effective_batch: int
    """Images in a step, if they are more: codes and gradients are those of all of them, in the
    memory of batch_size; 0 is batch_size."""
    optimizer: Literal["adamw", "sgd", "lars"]
    """adamw, sgd with momentum, or lars: sgd at a rate for each layer, for large batches."""
    learning_rate: float
    """Peak, reached at the end of the warm-up."""
    final_learning_rate: float
    """Where the cosine ends, as a share of the peak."""
    warmup: float
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: float
    """Of matrices and filters; biases and batch norms have none."""
    momentum: float
    """Of sgd and lars."""
    trust: float
    """Of lars: the step of a layer in units of its norm, at learning rate 1."""
    clip_gradient: float
    """Largest norm of the gradient of all parameters; 0 is no limit."""
    autocast: Literal["off", "bfloat16", "float16"]
    """Half precision inside the network; its weights and the loss keep dtype. float16 scales the
    loss."""

    epsilon: float
    """Smoothing of the Sinkhorn codes: the first setting to lower if the loss stays near ln K."""
    temperature: float
    """Of the softmax that predicts the codes."""
    iterations: int
    """Of the Sinkhorn."""
    assignment: Literal["sinkhorn", "softmax"]
    """Codes: balanced by the Sinkhorn, or a plain softmax, which collapses."""
    num_prototypes: int
    """K."""
    freeze_steps: int
    """First steps in which the prototypes do not learn."""
    queue_length: int
    """Features of earlier batches that join the Sinkhorn, for each assign crop; 0 is no queue."""
    queue_start: float
    """Share of the steps after which the queue is filled."""

    arch: Literal[
        "small", "resnet18", "resnet34", "resnet50", "resnet50w2", "resnet50w4", "resnet50w5"
    ]
    """Backbone; small is a residual net for images of some 24 pixels, w2 has twice the channels."""
    model: str
    """In place of arch a network of yours, as package.module:callable; called without arguments it
    returns a torch module from images [B, C, H, W] to features [B, dim]."""
    width: int
    """Channels of the small net's first layer; its features have four times as many."""
    hidden_dim: int
    """Hidden units of the projection head."""
    feature_dim: int
    """D, the length of a projected feature."""
    head_batch_norm: bool
    """End the head with a batch norm without affine."""

    global_size: int
    """Pixels of the two global crops, whose codes are computed; also of a file's evaluation."""
    global_area: tuple[float, float]
    """Smallest and largest share of the image that a global crop covers."""
    local_crops: int
    """Number of the local crops, which only predict."""
    local_size: int
    """Pixels of a local crop."""
    local_area: tuple[float, float]
    """Smallest and largest share of the image that a local crop covers."""
    aspect: float
    """Largest aspect ratio of a crop."""
    rotation: float
    """Largest rotation, in degrees."""
    flip: float
    """Probability of a mirrored crop."""
    jitter: float
    """Probability of the colour jitter, whose strengths follow."""
    brightness: float
    """Brightness x(1 ± this)."""
    contrast: float
    """Contrast x(1 ± this)."""
    saturation: float
    """Saturation x(1 ± this)."""
    hue: float
    """Hue ± this share of the colour circle."""
    gamma: float
    """Exponent 1 ± this."""
    grey: float
    """Probability of a crop without colour."""
    blur: float
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float]
    """Smallest and largest standard deviation of the blur, in pixels of the crop."""

    log_every: int
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int
    """Epochs between two checkpoints."""
    tracker: Literal["none", "tensorboard", "wandb"]
    """Experiment tracker that gets what metrics.jsonl gets."""

    def __post_init__(self) -> None:
        """Convert what TOML and users write loosely, then check every value."""
        for name, hint in typing.get_type_hints(Config).items():
            object.__setattr__(self, name, _convert(name, getattr(self, name), hint))
        check_ranges(self)
        if self.data not in IN_MEMORY and not self.data.startswith(FOLDER_PREFIX):
            raise TrainerError(
                f"unknown data {printable(self.data)!r}: choose from {', '.join(IN_MEMORY)} or "
                f"{FOLDER_PREFIX}PATH{did_you_mean(self.data, (*IN_MEMORY, FOLDER_PREFIX))}"
            )

    @property
    def step_images(self) -> int:
        """Images in a step, of all processes."""
        return self.effective_batch or self.batch_size

    @property
    def folder(self) -> Path | None:
        """The image folder, or None for data that comes in a package."""
        if not self.data.startswith(FOLDER_PREFIX):
            return None
        return Path(self.data.removeprefix(FOLDER_PREFIX))

    def save(self, path: Path) -> None:
        """Write every setting as TOML; `--preset` reads it back."""
        lines = (f"{f.name} = {_to_toml(getattr(self, f.name))}\n" for f in FIELDS)
        path.write_text("".join(lines), encoding="utf-8")


FIELDS = dataclasses.fields(Config)


def load(path: Path) -> Config:
    """Read a TOML file that holds every setting.

    Raises:
        TrainerError: the file is missing or no TOML, a setting is unknown, missing or wrong.
    """
    shown = printable(path)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise TrainerError(f"cannot read {shown}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainerError(f"{shown} is not a TOML file: {error}") from error
    names = [field.name for field in FIELDS]
    for name in values:
        if name not in names:
            raise TrainerError(f"{shown}: unknown setting {name!r}{did_you_mean(name, names)}")
    missing = [name for name in names if name not in values]
    if missing:
        raise TrainerError(f"{shown} lacks the settings {', '.join(missing)}")
    return Config(**values)


def load_preset(name: str) -> Config:
    """Read a preset by its name, or from a TOML file of the user's."""
    if name.endswith(".toml"):
        return load(Path(name))
    known = preset_names()
    if name not in known:
        raise TrainerError(
            f"unknown preset {name!r}: choose from {', '.join(known)} or a .toml file"
            f"{did_you_mean(name, known)}"
        )
    return load(PRESETS / f"{name}.toml")


def preset_names() -> list[str]:
    """Names of the presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_for(data: str | None) -> str:
    """Return the preset that fits the data: an image folder never gets the net for digits."""
    if data is None:
        return DEFAULT_PRESET
    return data if data in IN_MEMORY else "folder" if data.startswith(FOLDER_PREFIX) else "mnist5k"


def resolve_data(data: str) -> str:
    """Return the data with an absolute path, so that a resumed run finds it from anywhere."""
    if not data.startswith(FOLDER_PREFIX):
        return data
    if data == FOLDER_PREFIX:
        raise TrainerError(f"{FOLDER_PREFIX} needs a path: --data {FOLDER_PREFIX}PATH")
    return FOLDER_PREFIX + os.path.abspath(os.path.expanduser(data.removeprefix(FOLDER_PREFIX)))


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Return the value as the type of its field; raise TrainerError if it is of another one."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise TrainerError(
                f"{name} must be one of {', '.join(choices)}, got {value!r}"
                f"{did_you_mean(str(value), choices)}"
            )
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple) and len(value) == 2:
            return tuple(_convert(name, item, float) for item in value)
        raise TrainerError(f"{name} must be two numbers, got {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TrainerError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value


def _to_toml(value: str | int | float | bool | tuple[float, ...]) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, DEL aside, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_to_toml, value)) + "]"
    return repr(value)
