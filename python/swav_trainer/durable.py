"""Files that are written whole or not at all, whatever fails or is killed."""

import contextlib
import os
import shutil
from pathlib import Path

from swav_trainer.errors import TrainerError, printable


def write(path: Path, content: bytes, what: str = "", previous: Path | None = None) -> None:
    """Write a file; a crash at any moment leaves it or the one before, never half of one.

    Args:
        path: the file.
        content: of it.
        what: it is, for the message of an error.
        previous: what the file that is there is renamed to; None replaces it.

    Raises:
        TrainerError: the disk refuses it; what was there before is there, under one of its names.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, what, len(content)) from error


def write_text(path: Path, text: str) -> None:
    """Write a file of text, as `write` does."""
    write(path, text.encode("utf-8"))


def flush(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def cannot_write(path: Path, error: BaseException, what: str = "", size: int = 0) -> TrainerError:
    """Return the error of a file that could not be written: where, how long, why.

    Args:
        path: the file.
        error: what the system said.
        what: the file is.
        size: of it in bytes, if it is known.
    """
    name = " ".join(filter(None, (what, printable(path))))
    length = f" of {size} bytes" if size else ""
    reason = getattr(error, "strerror", None) or error
    return TrainerError(f"cannot write {name}{length}{_room(path.parent)}: {reason}")


def _room(folder: Path) -> str:
    """How much room is left, if that can be told."""
    try:
        return f", with {shutil.disk_usage(folder).free} bytes free"
    except OSError:
        return ""
