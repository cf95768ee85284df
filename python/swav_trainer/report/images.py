"""Pictures inside the page: small, and as data addresses."""

import base64
import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from swav_trainer.config import Config
from swav_trainer.data import Part
from swav_trainer.loader import Loader

Pixels = np.ndarray  # [H, W, 1 or 3] uint8, RGB
CHUNK = 256  # images that are decoded at a time
JPEG_QUALITY = 80


def thumbnails(part: Part, rows: Sequence[int], size: int, config: Config) -> list[Pixels]:
    """Whole images of these rows, each side `size` pixels at most."""
    loader = Loader(part, config)
    result: list[Pixels] = []
    for run in _runs(rows):
        images = loader.whole(run, size)
        if images.shape[-1] > size:
            images = functional.interpolate(images, size=(size, size), mode="area")
        result += to_pixels(images)
    return result


def _runs(rows: Sequence[int]) -> list[range]:
    """Cut rows into stretches that follow each other, of CHUNK at most."""
    stretches: list[range] = []
    for row in rows:
        last = stretches[-1] if stretches else range(0)
        if last and row == last.stop and len(last) < CHUNK:
            stretches[-1] = range(last.start, row + 1)
        else:
            stretches.append(range(row, row + 1))
    return stretches


def to_pixels(images: Tensor) -> list[Pixels]:
    """[N, C, H, W] from 0 to 1 -> pictures."""
    scaled = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).numpy())


def address(pixels: Pixels) -> str:
    """A picture as a data address: PNG or JPEG, whichever is shorter."""
    image = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, png = cv2.imencode(".png", image)
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def sheet(pictures: Sequence[Pixels]) -> tuple[Pixels, int]:
    """Pictures of one size in rows, and how many are in a row."""
    columns = math.ceil(math.sqrt(len(pictures)))
    height, width, channels = pictures[0].shape
    lines = math.ceil(len(pictures) / columns)
    whole = np.zeros((lines * height, columns * width, channels), np.uint8)
    for number, picture in enumerate(pictures):
        line, column = divmod(number, columns)
        top, left = line * height, column * width
        whole[top : top + height, left : left + width] = picture
    return whole, columns
