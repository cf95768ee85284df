"""Image files that lie, break off or want all memory: each is read right, or is bad, by itself."""

import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import HEIGHT, LEFT, RIGHT, WIDTH, encoded, picture
from PIL import Image
from swav_trainer import decoding, files
from swav_trainer.sources import webdataset
from test_trainer_shards import member, samples, write


def turned(orientation: int) -> bytes:
    """The picture stored upside down or on its side, which its EXIF data say."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    return encoded("JPEG", picture().transpose(turns[orientation]), exif=exif, quality=95)


def moving(kind: str) -> bytes:
    """The picture, and others behind it."""
    others = [Image.new("RGB", (WIDTH, HEIGHT), "white")] * 3
    return encoded(kind, save_all=True, append_images=others)


def chunk(name: bytes, content: bytes) -> bytes:
    """A piece of a PNG."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width: int, height: int, data: bytes, depth: int = 1) -> bytes:
    """A grey PNG by hand."""
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return decoding.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def sixteen_bits() -> bytes:
    """The picture as a PNG of 16 bits a channel."""
    pixels = np.asarray(picture())[..., ::-1].astype(np.uint16) * 257
    return cv2.imencode(".png", pixels)[1].tobytes()


GOOD = {
    "grey": encoded("JPEG", picture().convert("L")),
    "CMYK": encoded("JPEG", picture().convert("CMYK"), quality=95),
    "progressive": encoded("JPEG", progressive=True, quality=95),
    "much before the size": encoded("JPEG", comment=b"\xff" * 60_000, quality=95),
    "turned by 180": turned(3),
    "turned by 90": turned(6),
    "palette": encoded("PNG", picture().convert("P")),
    "transparent": encoded("PNG", picture().convert("RGBA")),
    "16 bits": sixteen_bits(),
    "plain PNG": encoded("PNG"),
    "moving PNG": moving("PNG"),
    "moving WebP": moving("WEBP"),
    "lossy WebP": encoded("WEBP", quality=95),
    "lossless WebP": encoded("WEBP", lossless=True),
    "WebP with properties": encoded("WEBP", quality=95, exif=Image.Exif().tobytes() + b"x"),
    "bytes behind the end": encoded("JPEG", quality=95) + b"trailing" * 10,
}


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_is_read_whatever_its_make_and_its_ending(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"  # the content says what it is
    path.write_bytes(GOOD[name])
    image = files.decode(path)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    wanted = np.array([LEFT, RIGHT])
    if name == "grey":
        wanted = (wanted @ [0.299, 0.587, 0.114]).round()[:, None].repeat(3, 1)
    found = image[:, [WIDTH // 4, 3 * WIDTH // 4]].mean(0)
    assert np.abs(found - wanted).max() < (60 if name == "CMYK" else 12)


JPEG, PNG, WEBP = (encoded(kind, quality=95) for kind in ("JPEG", "PNG", "WEBP"))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
BAD = {
    "empty": b"",
    "text": b"no image" * 100,
    "JPEG cut in its header": JPEG[:20],
    "JPEG cut in half": encoded("JPEG", NOISE)[:4000],
    "progressive JPEG cut in half": encoded("JPEG", NOISE, progressive=True)[:4000],
    "PNG cut in its header": PNG[:20],
    "PNG cut in half": encoded("PNG", NOISE)[:9000],
    "WebP cut in its header": WEBP[:24],
    "WebP cut in half": encoded("WEBP", NOISE)[:2000],
    "PNG with a wrong sum": PNG[:50] + bytes([PNG[50] ^ 1]) + PNG[51:],
    "JPEG of endless markers": b"\xff\xd8" + b"\xff" * 100_000,
    "JPEG of markers without length": b"\xff\xd8\xff\xe0" + b"\0" * 50_000,
    "JPEG of height 0": JPEG.replace(struct.pack(">HH", HEIGHT, WIDTH), bytes(4)),
    "PNG of height 0": png(10, 0, zlib.compress(b"")),
    "PNG without data": png(50, 50, b""),
    "GIF": moving("GIF"),
    "TIFF": encoded("TIFF"),
    "BMP": encoded("BMP"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_whole_picture_is_bad(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(BAD[name])
    assert files.decode(path) is None


def claiming(content: bytes) -> bytes:
    """A JPEG that says it has 65,500 pixels a side."""
    return content.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 65500, 65500))


BOMBS = {
    "PNG": png(30_000, 30_000, zlib.compress(bytes(3751) * 30_000)),
    "PNG of 2 ** 62 pixels": png(2**31 - 1, 2**31 - 1, zlib.compress(bytes(100))),
    "JPEG": claiming(JPEG),
    "JPEG behind much else": claiming(encoded("JPEG", comment=b"x" * 60_000)),
    "WebP": b"RIFF\x20\0\0\0WEBPVP8 \x14\0\0\0\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20),
    "WebP, lossless": b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f\xff\xff\xff\x0f" + bytes(20),
    "WebP with properties": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0"
    + b"\0" * 4
    + b"\xff" * 6
    + bytes(20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_never_decoded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = BOMBS[name]
    width, height = decoding.size_of(content)
    assert width * height > decoding.MOST_PIXELS
    assert len(content) < 200_000
    monkeypatch.setattr(cv2, "imdecode", None)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert files.decode(path) is None


@pytest.mark.parametrize("name", ["grey", "lossy WebP", "lossless WebP", "WebP with properties",
                                  "moving WebP", "16 bits", "much before the size"])  # fmt: skip
def test_the_header_tells_the_size(name: str) -> None:
    assert decoding.size_of(GOOD[name]) == (WIDTH, HEIGHT)


def test_what_is_no_file_or_too_long_a_one_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    (tmp_path / "long.jpg").write_bytes(JPEG)
    os.truncate(tmp_path / "long.jpg", decoding.MOST_BYTES + 1)
    (tmp_path / "fits.jpg").write_bytes(JPEG)
    for path in tmp_path.iterdir():
        assert (files.decode(path) is None) == (path.name != "fits.jpg")


def test_memory_stays_small_whatever_the_files_say(tmp_path: Path) -> None:
    for i, content in enumerate([*BOMBS.values(), *BAD.values()]):
        (tmp_path / f"{i}.jpg").write_bytes(content)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from swav_trainer import files\n"
        "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = most()\n"
        "assert not any(files.decode(path) is not None for path in Path(sys.argv[1]).iterdir())\n"
        "assert most() - before < 30_000, most() - before\n"  # KiB
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_hostile_pictures_in_shards_are_bad_and_the_others_are_read(tmp_path: Path) -> None:
    """Those of the tests on files, and one that is longer than any picture."""
    hostile = [
        member(f"{i:03}.jpg", content) for i, content in enumerate((*BOMBS.values(), *BAD.values()))
    ]
    path = write(tmp_path / "x.tar", [*samples(0, 40), *hostile], tarfile.USTAR_FORMAT)
    source = webdataset.Index([path]).source
    assert len(source) == 40 + len(BOMBS) + len(BAD)
    assert [row for row in range(len(source)) if source.decode(row) is not None] == list(range(40))

    info, _ = member("long.jpg")
    info.size = decoding.MOST_BYTES + 1
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(tarfile.BLOCKSIZE * 2 + info.size)
    source = webdataset.Index([path]).source
    tracemalloc.start()
    assert source.decode(0) is None
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
