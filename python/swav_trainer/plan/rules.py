"""The rules: which settings fit which images, each with its reason.

They come from the paper (Caron et al. 2020, section 4 and appendix A) for large sets, and from the
recipe for MNIST-5k behind the shipped presets for small ones.
"""

import math
from dataclasses import dataclass
from typing import Any

from swav_trainer.plan.survey import Survey

SIZES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224)  # pixels of a global crop
LARGEST_ON_CPU = 96
SMALL_NET = 32  # pixels up to which the small net is enough
LARGE_NET = 100_000  # images from which ResNet-50 pays
A_CLASS, FEWEST_K, MOST_K = 6, 30, 3000
IMAGES_A_PROTOTYPE = 20
LARGEST_STEP, SMALLEST_STEP = 4096, 16
STEPS_AN_EPOCH = 10
STEPS_IN_ALL = 2000
FEWEST_EPOCHS, MOST_EPOCHS = 100, 400
LARS_FROM = 1024  # images in a step


@dataclass(frozen=True)
class Choice:
    """A setting and why."""

    name: str
    value: Any
    reason: str


def choose(survey: Survey) -> list[Choice]:
    """All settings but those that depend on memory."""
    crops, areas, arch = _crops(survey)
    prototypes, epsilon = _prototypes(survey)
    step = step_images(survey, prototypes.value)
    steps = max(1, survey.images // step)
    learning = _optimizer(step, arch.value)
    return [crops, areas, arch, prototypes, epsilon, *learning, *_length(steps)]


def _crops(survey: Survey) -> list[Choice]:
    limit = survey.side if survey.gpus else min(survey.side, LARGEST_ON_CPU)
    size = max((s for s in SIZES if s <= limit), default=SIZES[0])
    why = f"typical images have {survey.side} pixels"
    if not survey.gpus and survey.side > LARGEST_ON_CPU:
        why += f"; more than {LARGEST_ON_CPU} would take days on a CPU"
    if size == 224:
        crops, areas = "2x224+6x96", ((0.14, 1.0), (0.05, 0.14))
        scale = "the paper's"
    else:
        crops, areas = f"2x{size}+4x{size // 2}", ((0.25, 1.0), (0.08, 0.3))
        scale = "local crops of half the size"
    if size <= SMALL_NET:
        arch, reason = "small", f"made for images of {SMALL_NET} pixels and fewer"
    elif survey.gpus and survey.images >= LARGE_NET:
        arch, reason = "resnet50", f"the paper's, for {LARGE_NET} images and more on GPUs"
    else:
        arch, reason = "resnet18", "learns from few images, in reasonable time"
    return [
        Choice("crops", crops, f"{why}; {scale}"),
        Choice("areas", areas, "the smaller the crop, the smaller the part of the image"),
        Choice("arch", arch, reason),
    ]


def _prototypes(survey: Survey) -> list[Choice]:
    wanted = min(MOST_K, max(FEWEST_K, A_CLASS * survey.classes))
    most = survey.images // IMAGES_A_PROTOTYPE
    if most < wanted:
        reason = f"{IMAGES_A_PROTOTYPE} images a prototype, of {survey.images}"
    elif wanted == MOST_K:
        reason = "the paper's, for 1000 classes"
    else:
        reason = f"{A_CLASS} a class, {FEWEST_K} at least: some more than there are kinds"
    count = max(2, min(wanted, most))
    if count < 1000:
        epsilon = Choice("epsilon", 0.03, "0.05 leaves the codes of small sets near uniform")
    else:
        epsilon = Choice("epsilon", 0.05, "the paper's")
    return [Choice("num_prototypes", count, reason), epsilon]


def step_images(survey: Survey, num_prototypes: int) -> int:
    """Images in a step: two for each prototype, and ten steps an epoch at least."""
    wanted = 2 ** math.ceil(math.log2(2 * num_prototypes))
    most = 2 ** math.floor(math.log2(survey.images / STEPS_AN_EPOCH))
    return max(SMALLEST_STEP, min(LARGEST_STEP, wanted, most))


def _optimizer(step: int, arch: str) -> list[Choice]:
    if step < LARS_FROM:
        rate = Choice("learning_rate", 1e-3, "for a ResNet; lower it first if the loss is wild")
        if arch == "small":
            rate = Choice("learning_rate", 6e-3, "the small net's on MNIST-5k")
        return [Choice("optimizer", "adamw", f"for steps of fewer than {LARS_FROM} images"), rate]
    return [
        Choice("optimizer", "lars", f"for steps of {LARS_FROM} images and more, as the paper"),
        Choice("learning_rate", 4.8, "the paper's, at 4096 images"),
        Choice("rate_images", 4096, "scaled in proportion to the images in a step"),
        Choice("weight_decay", 1e-6, "the paper's"),
        Choice("warmup_rate", 0.0625, "the paper's: from 0.3 to 4.8"),
    ]


def _length(steps: int) -> list[Choice]:
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS_IN_ALL / steps)))
    if epochs == FEWEST_EPOCHS:
        reason = "the fewest that the paper reports; more is better"
    elif epochs == MOST_EPOCHS:
        reason = f"the most that is sensible; the images make {steps} steps an epoch"
    else:
        reason = f"{STEPS_IN_ALL} steps, as MNIST-5k wants; an epoch has {steps}"
    return [
        Choice("epochs", epochs, reason),
        Choice("freeze_steps", steps, "the first epoch, as in the paper"),
        Choice("queue_length", 0, "a step has samples enough; on small sets none gained by it"),
    ]
