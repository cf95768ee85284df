"""Image files, and random crops of their images through OpenCV."""

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from swav_trainer import decoding
from swav_trainer.config import Config
from swav_trainer.images import Image

# of (R, G, B, 1)
SAME, BLACK, LUMA = np.eye(4), np.zeros(4), np.array([0.299, 0.587, 0.114, 0])
SAME_HSV = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 1, 3))
HUES = np.arange(180)  # OpenCV's circle


class ImageFiles:
    """Files as the images of a data set.

    Args:
        paths: one for each image.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(map(os.fspath, paths))  # which take less memory, and less time to pickle

    def path(self, row: int) -> Path:
        """The file of an image."""
        return Path(self._paths[row])

    def decode(self, row: int) -> Image | None:
        """Read the file of an image; None if it is bad."""
        return decode(self.path(row))


def decode(path: Path) -> Image | None:
    """Return the image in a file, RGB [H, W, 3] uint8; None if it is bad."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > decoding.MOST_BYTES:
            return None  # a pipe would wait for ever
        return decoding.decode(path.read_bytes())
    except OSError:
        return None


def to_channels_first(image: Image, out: np.ndarray) -> None:
    """[H, W, 3] uint8 -> [3, H, W] float32, values from 0 to 1."""
    np.multiply(image.transpose(2, 0, 1), np.float32(1 / 255), out=out)


def central(image: Image, size: int) -> Image:
    """The central square, resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


def random_crop(
    image: Image, size: int, area: tuple[float, float], config: Config, rng: np.random.Generator
) -> Image:
    """One distorted crop [size, size, 3] uint8 (Caron et al. 2020, appendix A)."""
    crop = _resized_crop(image, size, area, config.aspect, rng)
    if rng.random() < config.flip:
        crop = cv2.flip(crop, 1)
    if rng.random() < config.jitter:
        crop = _jitter(crop, config, rng)
    if rng.random() < config.grey:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < config.blur:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(*config.blur_sigma))
    return crop


def _resized_crop(
    image: Image, size: int, area: tuple[float, float], aspect: float, rng: np.random.Generator
) -> Image:
    height, width = image.shape[:2]
    for _ in range(10):
        share = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(-math.log(aspect), math.log(aspect)))
        w, h = round(math.sqrt(share * ratio)), round(math.sqrt(share / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:  # a very long image
        w = h = min(height, width)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    region = image[top : top + h, left : left + w]
    times = min(w, h) // size
    if times > 1:  # means of whole blocks first, which are far faster than those of broken ones
        w, h = w // times, h // times
        region = cv2.resize(region[: h * times, : w * times], (w, h), interpolation=cv2.INTER_AREA)
    return cv2.resize(region, (size, size), interpolation=cv2.INTER_LINEAR)


def _jitter(crop: Image, config: Config, rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue, in random order.

    All but the hue are affine in the colours: those in a row are applied at once.
    """
    colours = SAME
    for change in rng.permutation(4):
        if change == 0:
            step = _mix(_factor(rng, config.brightness), BLACK)
        elif change == 1:
            mean = LUMA @ (colours @ (*cv2.mean(crop)[:3], 1))
            step = _mix(_factor(rng, config.contrast), np.array((0, 0, 0, mean)))
        elif change == 2:
            step = _mix(_factor(rng, config.saturation), LUMA)
        else:
            if colours is not SAME:
                crop = cv2.transform(crop, colours[:3])
            crop, colours = _shift_hue(crop, config.hue, rng), SAME
            continue
        colours = step @ colours
    return crop if colours is SAME else cv2.transform(crop, colours[:3])


def _mix(factor: float, towards: np.ndarray) -> np.ndarray:
    """Colours x factor + towards (1 - factor), one colour for all, as a matrix for (R, G, B, 1)."""
    matrix = factor * SAME
    matrix[:3] += (1 - factor) * towards
    matrix[3, 3] = 1
    return matrix


def _shift_hue(crop: Image, strength: float, rng: np.random.Generator) -> Image:
    if strength == 0:
        return crop
    table = SAME_HSV.copy()
    shift = round(rng.uniform(-strength, strength) * len(HUES))
    table[: len(HUES), 0, 0] = (HUES + shift) % len(HUES)
    hsv = cv2.LUT(cv2.cvtColor(crop, cv2.COLOR_RGB2HSV), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _factor(rng: np.random.Generator, strength: float) -> float:
    return float(rng.uniform(max(0.0, 1 - strength), 1 + strength))
