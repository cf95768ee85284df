"""Every setting of a run: one typed, flat dataclass whose values come from a preset."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swav_trainer import crops, sources
from swav_trainer.errors import TrainerError, did_you_mean
from swav_trainer.ranges import check_ranges

FOLDER_PREFIX = "folder:"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run, named as on the command line and in `config.toml`.

    A setting that came later has a default: what runs did before it. Presets say every one.
    """

    data: str
    """mnist5k, digits, folder:PATH with a folder of JPEG, PNG or WebP files for each class
    or files without classes, webdataset:PATTERN of tar shards, hf:PATH,
    torchvision:CLASS,root=PATH, or synthetic:COUNTxSIZE."""
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
    """Threads or processes that decode and crop files; 0 is one for each core."""
    loader: Literal["threads", "processes"] = "threads"
    """What the workers are: the crops are the same."""

    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images at a time; the last, incomplete batch of an epoch is dropped."""
    effective_batch: int = 0
    """Images in a step, if they are more: codes and gradients are those of all of them, in the
    memory of batch_size; 0 is batch_size."""
    method: Literal["swav", "deepcluster"] = "swav"
    """swav, or its sibling DeepCluster-v2, whose codes are clusters of the epoch before."""
    optimizer: Literal["adamw", "sgd", "lars"]
    """adamw, sgd with momentum, or lars: sgd at a rate for each layer, for large batches."""
    learning_rate: float
    """Peak, reached at the end of the warm-up."""
    rate_images: int = 0
    """Images in a step that learning_rate is meant for: at another number it is scaled in
    proportion; 0 is no scaling."""
    final_learning_rate: float
    """Where the cosine ends, as a share of the peak."""
    warmup: float
    """Share of the steps in which the learning rate rises linearly."""
    warmup_rate: float = 0.0
    """Where it begins to rise, as a share of the peak."""
    weight_decay: float
    """Of matrices and filters."""
    decay_vectors: bool = False
    """Treat biases and norms as the matrices are: with weight decay, and lars at rates of their
    own, as the paper's runs did."""
    momentum: float
    """Of sgd and lars."""
    trust: float
    """Of lars: the step of a layer in units of its norm, at learning rate 1."""
    clip_gradient: float = 0.0
    """Largest norm of the gradient of all parameters; 0 is no limit."""
    autocast: Literal["off", "bfloat16", "float16"] = "off"
    """Half precision inside the network; its weights and the loss keep dtype. float16 scales the
    loss."""
    compile: bool = False
    """Compile the backbone by torch.compile: minutes at the start, faster steps."""
    recompute: bool = False
    """Keep few activations and compute the others again: less memory, some 30 % more time."""
    batch_norm_group: int = 0
    """Processes that share the statistics of batch norms, neighbours; 0 is all of them."""
    shard: bool = False
    """Share the network's weights, gradients and optimiser state among the processes (FSDP), and
    write checkpoints as a folder of shards; one process alone keeps them whole."""
    overlap: bool = False
    """Balance the codes while the network embeds the crops of the other kinds, which have none: on
    GPUs the two go on at once. The head's batch norms then see the first kind by itself."""

    epsilon: float
    """Smoothing of the Sinkhorn codes: the first setting to lower if the loss stays near ln K."""
    temperature: float
    """Of the softmax that predicts the codes."""
    iterations: int
    """Of the Sinkhorn."""
    assignment: Literal["sinkhorn", "softmax"]
    """Codes: balanced by the Sinkhorn, or a plain softmax, which collapses."""
    hard_codes: bool = False
    """One-hot codes in place of soft ones."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the loss's products; bfloat16 is faster and rounds features and prototypes. It is for
    dtype float32."""
    num_prototypes: int
    """K."""
    heads: int = 1
    """Sets of K prototypes, over whose losses the mean is taken."""
    freeze_steps: int
    """First steps in which the prototypes do not learn."""
    queue_length: int
    """Features of earlier batches that join the Sinkhorn, for each assign crop; 0 is no queue."""
    queue_start: float
    """Share of the steps after which the queue is filled."""
    queue_epoch: int = 0
    """Epochs after which the queue is filled, in place of queue_start; 0 leaves it to that."""

    arch: Literal[
        "small",
        "resnet18",
        "resnet18_cifar",
        "resnet34",
        "resnet50",
        "resnet50w2",
        "resnet50w4",
        "resnet50w5",
        "vit_s16",
        "vit_b16",
    ]
    """Backbone; small is a residual net for images of some 24 pixels, resnet18_cifar begins as one
    for 32 pixels does, w2 has twice the channels."""
    model: str = ""
    """In place of arch a network of yours, as package.module:callable; called without arguments it
    returns a torch module from images [B, C, H, W] to features [B, dim]. Or timm:NAME or
    torchvision:NAME."""
    width: int
    """Channels of the small net's first layer; its features have four times as many."""
    hidden_dim: int
    """Hidden units of the projection head; 0 makes it linear."""
    feature_dim: int
    """D, the length of a projected feature."""
    head_batch_norm: bool
    """End the head with a batch norm without affine."""

    crops: str
    """Crops of an image, number x pixels of each kind, as in 2x224+6x96; the first kind's pixels
    are also those of a file in the evaluation."""
    areas: tuple[tuple[float, float], ...]
    """Smallest and largest share of the image that a crop covers, for each kind."""
    assign: tuple[int, ...] = (0, 1)
    """Which crops, counted from 0, have codes that the other ones predict."""
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
    knn_every: int = 0
    """Epochs between two nearest-neighbour figures of a part of the images; 0 is none."""
    checkpoint_every: int
    """Epochs between two checkpoints."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Experiment tracker that gets what metrics.jsonl gets."""

    def __post_init__(self) -> None:
        """Convert what TOML and users write loosely, then check every value."""
        for name, hint in typing.get_type_hints(Config).items():
            object.__setattr__(self, name, _convert(name, getattr(self, name), hint))
        check_ranges(self)
        crops.check_assign(self.assign, self.crop_kinds)
        sources.parse(self.data)

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

    @property
    def crop_kinds(self) -> tuple[crops.Crops, ...]:
        """Number, size and area of the crops of each kind."""
        return crops.parse(self.crops, self.areas)

    @property
    def num_crops(self) -> int:
        """V, crops of an image."""
        return sum(kind.count for kind in self.crop_kinds)

    @property
    def eval_size(self) -> int:
        """Pixels of a file's side in the evaluation."""
        return self.crop_kinds[0].size


FIELDS = dataclasses.fields(Config)


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
        kinds = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            raise TrainerError(f"{name} must be a list, got {value!r}")
        if kinds[-1] is ...:
            return tuple(_convert(name, item, kinds[0]) for item in value)
        if len(value) != len(kinds):
            raise TrainerError(f"{name} must be pairs of numbers, got {value!r}")
        return tuple(_convert(name, item, kind) for item, kind in zip(value, kinds))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TrainerError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value
