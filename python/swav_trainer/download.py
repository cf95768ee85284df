"""A file from an address that the user names."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from swav_trainer.errors import TrainerError, printable

MOST_BYTES = 8 * 2**30
TIMEOUT = 60  # seconds without a byte
CHUNK = 2**20


def download(url: str, file: Path, most: int = MOST_BYTES) -> None:
    """Write what an https address holds to a file.

    Raises:
        TrainerError: another scheme, also after a redirection; it cannot be had; it is too large.
    """
    shown = printable(url)
    if urlsplit(url).scheme != "https":
        raise TrainerError(f"{shown}: only https:// addresses are loaded")
    try:
        with opener().open(url, timeout=TIMEOUT) as response, file.open("wb") as out:
            size = 0
            while chunk := response.read(CHUNK):
                size += len(chunk)
                if size > most:
                    raise TrainerError(
                        f"{shown} holds more than {most} bytes, the most that is loaded"
                    )
                out.write(chunk)
            expected = response.headers.get("Content-Length")
    except (OSError, ValueError) as error:  # URLError is one, so is a time out
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise TrainerError(f"cannot load {shown}: {reason}") from error
    if expected is not None and size < int(expected):
        raise TrainerError(f"cannot load {shown}: it ended after {size} of {expected} bytes")


def opener() -> urllib.request.OpenerDirector:
    """Return what opens https and nothing else, wherever it is redirected."""
    result = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.UnknownHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPSHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        result.add_handler(handler())
    return result


def check_sha256(file: Path, wanted: str) -> None:
    """Raise TrainerError unless the file has this SHA-256."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != wanted.strip().lower():
        raise TrainerError(
            f"{printable(file)} has SHA-256 {digest.hexdigest()}, wanted {printable(wanted)}"
        )
