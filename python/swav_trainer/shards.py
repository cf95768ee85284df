"""Images in tar files, indexed once and then read each by itself."""

import contextlib
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from swav_trainer import decoding, tar
from swav_trainer.errors import TrainerError, printable
from swav_trainer.images import Image


class Shards:
    """Members of tar files as the images of a data set: 32 bytes for each, and no name.

    Args:
        paths: the tar files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(map(os.fspath, paths))
        self._places = array("q")  # shard, header, start and size of each image

    def __len__(self) -> int:
        return len(self._places) // 4

    def add(self, shard: int, member: tar.Member) -> None:
        """Take in a member of a shard."""
        self._places.extend((shard, member.header, member.start, member.size))

    def path(self, row: int) -> Path:
        """Shard and name, which is looked up in the shard."""
        shard, header, _, _ = self._places[4 * row : 4 * row + 4]
        path = self.paths[shard]
        with opened(path) as descriptor:
            try:
                name = next(tar.members(descriptor, header)).name
            except (tar.DamagedError, StopIteration):  # the shard is another one by now
                name = f"byte {header}"
        return Path(f"{path}/{name}")

    def decode(self, row: int) -> Image | None:
        """Read an image; None if it is bad."""
        shard, _, start, size = self._places[4 * row : 4 * row + 4]
        if size > decoding.MOST_BYTES:
            return None
        with opened(self.paths[shard]) as descriptor:
            return decoding.decode(os.pread(descriptor, size, start))


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a file for os.pread; TrainerError if that cannot be done."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # no waiting for a pipe's writer
    except OSError as error:
        raise TrainerError(f"cannot read {printable(path)}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
