"""Bytes of an image file -> pixels, through OpenCV; never more of them than memory is meant for."""

import struct

import cv2
import numpy as np

from swav_trainer.images import Image

MOST_BYTES = 2**27  # of a file
MOST_PIXELS = 2**26  # of an image: 200 MB as RGB
PNG, JPEG, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"WEBP"
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's markers that tell the size
BARE = {0x01, *range(0xD0, 0xD9)}  # those that no length follows

cv2.setNumThreads(0)  # threads are ours, one an image
# a bad file is reported by name, once, and not by the decoder
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes) -> Image | None:
    """Return an image as RGB [H, W, 3] uint8, turned as its EXIF data say; None if it is bad.

    Good are JPEG, PNG and WebP (of a moving one the first picture), whatever their name, of at
    most MOST_PIXELS by their header.
    """
    width, height = size_of(data)
    if not 0 < width * height <= MOST_PIXELS:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height by the header; 0, 0 if it is none of a known format."""
    if data.startswith(PNG) and data[12:16] == b"IHDR":
        return struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)
    if data.startswith(JPEG):
        return _size_of_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == WEBP:
        return _size_of_webp(data[12:16], data[20:30])
    return 0, 0


def _size_of_jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while 0 <= at < len(data) - 8:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # stray or filling bytes
            at = data.find(b"\xff", at + 1)
        elif marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            length = 0 if marker in BARE else int.from_bytes(data[at + 2 : at + 4], "big")
            at += 2 + length
    return 0, 0


def _size_of_webp(kind: bytes, head: bytes) -> tuple[int, int]:
    """From the first chunk, `head` being what it begins with."""
    if len(head) < 10:
        return 0, 0
    if kind == b"VP8 ":
        return tuple(int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return tuple(int.from_bytes(head[at : at + 3], "little") + 1 for at in (4, 7))
    return 0, 0
