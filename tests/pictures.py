"""Small image files for the tests of the trainer."""

from pathlib import Path

import cv2
import numpy as np


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
