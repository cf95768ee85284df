"""The range of every number among the settings."""

from typing import TYPE_CHECKING

from swav_trainer.errors import TrainerError

if TYPE_CHECKING:
    from swav_trainer.config import Config

_SHARE = ("holdout", "warmup", "warmup_rate", "final_learning_rate", "queue_start", "flip",
          "jitter", "grey", "blur", "brightness", "contrast", "saturation", "gamma",
          "momentum")  # fmt: skip
_POSITIVE = ("learning_rate", "trust", "epsilon", "temperature")
_NOT_NEGATIVE = ("seed", "workers", "weight_decay", "clip_gradient", "freeze_steps",
                 "queue_length", "rotation", "rate_images", "queue_epoch", "hidden_dim",
                 "batch_norm_group", "knn_every")  # fmt: skip
_LEAST = {
    "epochs": 1, "batch_size": 2, "iterations": 1, "num_prototypes": 2, "width": 1,
    "heads": 1, "feature_dim": 1, "log_every": 1,
    "checkpoint_every": 1, "aspect": 1.0,
}  # fmt: skip


def check_ranges(config: "Config") -> None:
    """Raise TrainerError for the first setting that is out of its range."""

    def refuse_unless(condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise TrainerError(f"{name} must be {wanted}, got {getattr(config, name)!r}")

    for name in _SHARE:
        refuse_unless(0 <= getattr(config, name) <= 1, name, "from 0 to 1")
    for name in _POSITIVE:
        refuse_unless(0 < getattr(config, name) < float("inf"), name, "above 0")
    for name in _NOT_NEGATIVE:
        refuse_unless(0 <= getattr(config, name) < float("inf"), name, "0 or more")
    for name, least in _LEAST.items():
        refuse_unless(least <= getattr(config, name) < float("inf"), name, f"at least {least}")
    low, high = config.blur_sigma
    refuse_unless(0.01 <= low <= high < float("inf"), "blur_sigma", "two rising numbers from 0.01")
    refuse_unless(
        config.queue_length == 0 or config.queue_epoch < config.epochs, "queue_epoch",
        f"below epochs, {config.epochs}",
    )  # fmt: skip
    if config.method == "deepcluster":  # whose codes are clusters
        for name, only in (("queue_length", 0), ("hard_codes", False), ("assignment", "sinkhorn")):
            refuse_unless(
                getattr(config, name) == only, name, f"{only} where method is deepcluster"
            )
    refuse_unless(
        config.precision == "float32" or config.dtype == "float32", "precision",
        f"float32 where dtype is {config.dtype}",
    )  # fmt: skip
    if config.shard:
        refuse_unless(not config.compile, "compile", "false where shard is true")
        refuse_unless(
            config.autocast != "float16", "autocast", "off or bfloat16 where shard is true"
        )
    if config.overlap:
        kinds, last = config.crop_kinds, max(config.assign)
        for condition, where in (
            (config.method == "swav", f"method is {config.method}"),
            (config.assignment == "sinkhorn", f"assignment is {config.assignment}"),
            (not config.effective_batch, f"effective_batch is {config.effective_batch}"),
            (len(kinds) > 1, f"crops are of one kind, {config.crops}"),
            (last < kinds[0].count, f"assign names crop {last}, which is not of the first kind"),
        ):
            refuse_unless(condition, "overlap", f"false where {where}")
    refuse_unless(0 <= config.hue <= 0.5, "hue", "from 0 to 0.5")
    refuse_unless(0 < config.holdout < 1, "holdout", "between 0 and 1")
    refuse_unless(
        config.effective_batch == 0 or config.effective_batch >= config.batch_size,
        "effective_batch", f"0 or at least batch_size, {config.batch_size}",
    )  # fmt: skip
    refuse_unless(
        config.queue_length == 0 or config.queue_length >= config.step_images, "queue_length",
        f"0 or at least the images in a step, {config.step_images}",
    )  # fmt: skip
