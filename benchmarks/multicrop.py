"""`python -m benchmarks.multicrop`: the trainer's crops of a JPEG against a Pillow pipeline.

Both decode one file of 500x375 pixels and make 2 crops of 224 and 6 of 96 with the same random
distortions, as float32 tensors; images/s of one core.
"""

import argparse
import dataclasses
import importlib.util
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from swav_trainer.config import Config
from swav_trainer.data import Part
from swav_trainer.images import BadFiles, Images
from swav_trainer.loader import Loader
from swav_trainer.settings import load_preset
from torch import Tensor

from benchmarks import measure

if TYPE_CHECKING:  # Pillow is imported by who calls, if it is there
    from PIL.Image import Image as PilImage

WIDTH, HEIGHT, QUALITY = 500, 375, 90
NUM_IMAGES = 16  # of a sample
NEEDED = {"cv2": "opencv-python-headless", "PIL": "pillow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each pipeline."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multicrop", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            print(f"benchmarks.multicrop: {package} is not installed")
            return 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        write_jpeg(path)
        calls = {"pillow": pillow_pipeline(path), "swav_trainer": trainer_pipeline(path)}
        timings = measure.compare(calls, measure.cpu_sampler(calls), options.seconds, ["pillow"])
    for name, timing in timings.items():
        rate = 1e3 * NUM_IMAGES / (timing.cpu_ms or timing.wall_ms)
        print(
            f"{name:<14}{rate:>8.1f} images/s of one core, spread {timing.spread:.1%}, "
            f"{timing.ratios['pillow']:.2f} x pillow"
        )
    return 0


def recipe() -> Config:
    """Return the paper's crops (appendix A of Caron et al. 2020), one thread."""
    return dataclasses.replace(
        load_preset("folder"), batch_size=NUM_IMAGES, workers=1, crops="2x224+6x96",
        areas=((0.14, 1.0), (0.05, 0.14)),
    )  # fmt: skip


def write_jpeg(path: Path) -> None:
    """Write a picture with the smooth parts and the grain of a photograph."""
    import cv2

    rng = np.random.default_rng(0)
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for cells in (4, 16, 64, 256):  # coarse shapes are strong, fine ones weak
        noise = rng.normal(size=(cells, cells, 3))
        pixels += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) / cells**0.5
    pixels = 128 + 64 * pixels / pixels.std()
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def trainer_pipeline(path: Path) -> Callable[[], object]:
    """The trainer's own loader."""
    from swav_trainer.files import ImageFiles

    source = ImageFiles([path] * NUM_IMAGES)
    images = Images(source, np.arange(NUM_IMAGES), BadFiles(NUM_IMAGES))
    loader = Loader(Part(images, torch.zeros(NUM_IMAGES, dtype=torch.int64)), recipe())
    return lambda: list(loader.batches(0))


def pillow_pipeline(path: Path) -> Callable[[], object]:
    """The same in Pillow, as well as it can: a crop is cut out and resized in one step."""
    from PIL import Image

    config = recipe()
    rng = np.random.default_rng(0)

    def one_image() -> list[list[Tensor]]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        return [
            [_pillow_crop(image, kind.size, kind.area, config, rng) for _ in range(kind.count)]
            for kind in config.crop_kinds
        ]

    def batch() -> list[Tensor]:
        images = [one_image() for _ in range(NUM_IMAGES)]
        return [torch.stack([crop for crops in kind for crop in crops]) for kind in zip(*images)]

    return batch


def _pillow_crop(
    image: "PilImage",
    size: int,
    area: tuple[float, float],
    config: Config,
    rng: np.random.Generator,
) -> Tensor:
    from PIL import Image, ImageFilter, ImageOps

    box = _box(image.width, image.height, area, config.aspect, rng)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box)
    if rng.random() < config.flip:
        crop = ImageOps.mirror(crop)
    if rng.random() < config.jitter:
        crop = _pillow_jitter(crop, config, rng)
    if rng.random() < config.grey:
        crop = crop.convert("L").convert("RGB")
    if rng.random() < config.blur:
        crop = crop.filter(ImageFilter.GaussianBlur(rng.uniform(*config.blur_sigma)))
    pixels = np.asarray(crop).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).div_(255)


def _box(
    width: int, height: int, area: tuple[float, float], aspect: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a crop of random area and aspect."""
    share = rng.uniform(*area) * width * height
    ratio = math.exp(rng.uniform(-math.log(aspect), math.log(aspect)))
    w, h = min(width, math.sqrt(share * ratio)), min(height, math.sqrt(share / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, left + w, top + h


def _pillow_jitter(
    crop: "PilImage",
    config: Config,
    rng: np.random.Generator,
) -> "PilImage":
    """Brightness, contrast, saturation and hue, in random order."""
    from PIL import Image, ImageEnhance

    for change in rng.permutation(4):
        if change == 3:
            hue, saturation, value = crop.convert("HSV").split()
            shift = round(rng.uniform(-config.hue, config.hue) * 256)
            hue = hue.point([(x + shift) % 256 for x in range(256)])
            crop = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        else:
            enhance, strength = (
                (ImageEnhance.Brightness, config.brightness),
                (ImageEnhance.Contrast, config.contrast),
                (ImageEnhance.Color, config.saturation),
            )[change]
            crop = enhance(crop).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return crop


if __name__ == "__main__":
    raise SystemExit(main())
