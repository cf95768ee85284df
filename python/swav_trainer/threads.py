"""A loader's workers as threads of this process."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from swav_trainer import cropping
from swav_trainer.config import Config
from swav_trainer.images import Images

Job = tuple[list[Future[None]], list[np.ndarray]]


class Threads:
    """Threads that decode and crop; OpenCV works without Python's lock.

    Args:
        images: what they read.
        config: crops and distortions.
        count: how many threads.
    """

    def __init__(self, images: Images, config: Config, count: int) -> None:
        self.images = images
        self.config = config
        self._pool = ThreadPoolExecutor(count, "swav_loader")

    def start(self, epoch: int, rows: np.ndarray) -> Job:
        """Begin to crop these images."""
        crops = [np.empty(x, np.float32) for x in cropping.shapes(self.config, len(rows))]
        futures = [
            self._pool.submit(
                cropping.crop_image, self.images, self.config, epoch, index, crops, place
            )
            for place, index in enumerate(rows.tolist())
        ]
        return futures, crops

    def finish(self, job: Job) -> list[np.ndarray]:
        """Wait for the crops, [count, B, 3, H, W] for each kind."""
        futures, crops = job
        for future in futures:
            future.result()
        return crops

    def close(self) -> None:
        """End the threads; what was begun and is not wanted is left."""
        self._pool.shutdown(cancel_futures=True)
