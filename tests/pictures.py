"""Small image files for the tests of the trainer."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
LEFT, RIGHT = (200, 40, 40), (40, 40, 200)  # halves of the picture, RGB


def picture() -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    (picture() if image is None else image).save(file, kind, **options)
    return file.getvalue()


def pictures(folder: Path, each: int = 10) -> Path:
    """Write two classes of pictures of noise, one reddish and one bluish."""
    rng = np.random.default_rng(0)
    for channel, name in ((2, "red"), (0, "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 120, (30, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            cv2.imwrite(str(folder / name / f"{i:03}.png"), pixels)
    return folder
