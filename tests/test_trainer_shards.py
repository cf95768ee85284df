"""Images in tar shards: what is read, what is refused, and that nothing hostile does harm."""

import dataclasses
import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from depth import count
from swav_trainer import cli, data, tar
from swav_trainer.data import Dataset
from swav_trainer.errors import TrainerError
from swav_trainer.loader import Loader
from swav_trainer.settings import load_preset
from swav_trainer.sources import webdataset

FOLDER = dataclasses.replace(load_preset("folder"), batch_size=4, workers=2, crops="2x16+2x8")
ENDINGS = (".jpg", ".png", ".webp", ".JPEG")


def picture(number: int, ending: str = ".png") -> bytes:
    """A picture whose colour tells its number."""
    pixels = np.full((20, 30, 3), (number % 200 + 20, 50, 250 - number % 200), np.uint8)
    return cv2.imencode(ending, pixels)[1].tobytes()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple:
    """A member and its content."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
    return info, content


def write(path: Path, members: Iterable[tuple], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file."""
    with tarfile.open(path, "w", format=form) as opened:
        for info, content in members:
            opened.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, count: int, label: Callable[[int], int] | None = None) -> list[tuple]:
    """Images of all kinds, each with a label before or behind it, and a note."""
    found = []
    for i in range(first, first + count):
        image = member(f"{i:05}{ENDINGS[i % 4]}", picture(i, ENDINGS[i % 4]))
        labels = [] if label is None else [member(f"{i:05}.cls", b"%d\n" % label(i))]
        note = [member(f"{i:05}.json", b'{"note": 1}')]
        found += [image, *note, *labels] if i % 2 else [*labels, image, *note]
    return found


def loaded(pattern: object, **settings: object) -> Dataset:
    """The data set of a pattern."""
    return data.load(dataclasses.replace(FOLDER, data=f"webdataset:{pattern}", **settings))


def numbers(dataset: Dataset) -> list[str]:
    """Names of the images, in order."""
    parts = (dataset.train, dataset.test)
    return sorted(path.name.partition(".")[0] for part in parts for path in part.images.paths)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int) -> None:
    long = "" if form == tarfile.USTAR_FORMAT else "ü" * 120
    contents = [
        member(f"{'a' * 60}/{'b' * 80}{long}.jpg", b"x" * 1000), member("empty.png"),
        member("folder", kind=tarfile.DIRTYPE), member("c.cls", b"12"),
        member("link", kind=tarfile.SYMTYPE), member("block", b"y" * 512),
    ]  # fmt: skip
    if form == tarfile.PAX_FORMAT:
        contents[5][0].mtime = 1.5  # brings a header of properties
    path = write(tmp_path / "a.tar", contents, form)
    with tarfile.open(path) as opened:
        wanted = [(info.name, info.isreg(), info.offset, info.offset_data) for info in opened]
    descriptor = os.open(path, os.O_RDONLY)
    found = list(tar.members(descriptor))
    assert [(x.name.rstrip("/"), x.is_file, x.header, x.start) for x in found] == wanted
    assert [x.size for x in found] == [1000, 0, 0, 2, 0, 512]
    assert next(tar.members(descriptor, found[3].header)) == found[3]
    os.close(descriptor)


def test_images_of_several_shards_have_their_labels(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / f"x-{shard:03}.tar", samples(10 * shard, 10, lambda i: 7 * (i % 3)))
    dataset = loaded(tmp_path / "x-{000..002}.tar")
    assert dataset.classes == ("0", "7", "14")
    assert dataset.name == tmp_path.name
    assert numbers(dataset) == [f"{i:05}" for i in range(30)]
    for part in (dataset.train, dataset.test):
        for i, path in enumerate(part.images.paths):
            number = int(path.name[:5])
            assert dataset.classes[part.labels[i]] == str(7 * (number % 3))
            assert path.parent.name == f"x-{number // 10:03}.tar"
            ending = ENDINGS[number % 4]
            wanted = cv2.imdecode(np.frombuffer(picture(number, ending), np.uint8), 1)
            assert np.array_equal(part.images.read(i), wanted[..., ::-1])
    same = loaded(f"{tmp_path}/x-00[0-2].tar")
    assert same.fingerprint == dataset.fingerprint
    assert loaded(tmp_path / "x-{000,002}.tar").fingerprint != dataset.fingerprint


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("{08..11}", ["08", "09", "10", "11"]), ("{0..1}{a,b}", ["0a", "0b", "1a", "1b"]),
        ("a{,b}", ["a", "ab"]), ("{3..1}", []), ("{x}{1..2}", ["x1", "x2"]),
    ],
)  # fmt: skip
def test_braces(pattern: str, wanted: list[str]) -> None:
    assert [str(path) for path in webdataset.expand(pattern)] == wanted


def test_crops_from_shards_do_not_depend_on_workers_and_go_on_from_any_step(
    tmp_path: Path,
) -> None:
    write(tmp_path / "x.tar", samples(0, 20))
    part = loaded(tmp_path / "x.tar").train

    def crops(first: int, **changes: object) -> list[list[torch.Tensor]]:
        loader = Loader(part, dataclasses.replace(FOLDER, **changes))
        found = list(loader.batches(3, first))
        loader.close()
        return found

    whole = crops(0)
    assert len(whole) == 4
    for first, changes in ((0, {"workers": 1}), (2, {"loader": "processes", "workers": 3})):
        for one, other in zip(whole[first:], crops(first, **changes), strict=True):
            assert all(map(torch.equal, one, other))


def test_a_run_on_shards(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", samples(0, 60, lambda i: i % 2))
    run = tmp_path / "run"
    options = ["--data", f"webdataset:{tmp_path}/*.tar", "--epochs", "1", "--output", str(run)]
    options += ["--batch-size", "16", "--num-prototypes", "8", "--crops", "2x16"]
    options += ["--areas", "0.25", "1", "--arch", "small", "--width", "4", "--hidden-dim", "16"]
    assert cli.main(["train", *options]) == 0
    assert cli.main(["assign", str(run), str(tmp_path / "a.csv")]) == 0
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 61


# --- labels ---------------------------------------------------------------------------------------


def test_shards_without_labels_have_none(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", samples(0, 20))
    dataset = loaded(tmp_path / "x.tar")
    assert not dataset.has_labels
    assert set(dataset.train.labels.tolist()) == {-1}
    assert dataset.classes[dataset.train.labels[0]] == "unlabelled"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([member("y.png", picture(0))], r"1 of 21 images have no label, .*x.tar/y.png"),
        ([member("y.png", picture(0)), member("y.cls", b"cat")], "y.cls must hold the number.*cat"),
        ([member("y.cls", b"-3")], "must hold the number"),
        ([member("y.cls", b"9" * 50)], "must hold the number"),
    ],
)
def test_labels_that_are_missing_or_no_numbers(
    tmp_path: Path, extra: list[tuple], message: str
) -> None:
    write(tmp_path / "x.tar", samples(0, 20, lambda i: i % 2) + extra)
    with pytest.raises(TrainerError, match=message):
        loaded(tmp_path / "x.tar")


# --- shards that cannot be read -------------------------------------------------------------------


def test_a_pattern_without_shards_is_refused(tmp_path: Path) -> None:
    for pattern, message in {
        "x.tar": "cannot read .*x.tar: No such file",
        "*.tar": "no file .*webdataset wants tar files",
        "{0..999999999}.tar": "more than 100000 shards",
        "{0..99999}{0..99999}.tar": "more than 100000 shards",
        "": "is no file: webdataset wants tar files",
    }.items():
        with pytest.raises(TrainerError, match=message):
            loaded(tmp_path / pattern)
    write(tmp_path / "notes.tar", [member("notes.txt", b"none")])
    with pytest.raises(TrainerError, match=r"no images in .*notes.tar.*\.webp"):
        loaded(tmp_path / "notes.tar")


@pytest.mark.parametrize("kind", ["gz", "text", "pipe"])
def test_a_shard_that_is_no_tar_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.tar"
    if kind == "gz":
        path.write_bytes(gzip.compress(write(tmp_path / "good.tar", samples(0, 2)).read_bytes()))
    elif kind == "text":
        path.write_text("no tar file " * 100)
    else:
        os.mkfifo(path)
    message = {"gz": "gunzip", "text": "is no tar file", "pipe": "is no file"}[kind]
    with pytest.raises(TrainerError, match=rf"bad\.tar.*{message}"):
        loaded(path)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def claim(path: Path, field: bytes) -> None:
    """Write a size into the header of the last image but nine, with the sum that makes it true."""
    content = bytearray(path.read_bytes())
    at = content.index(b"00190.webp\0")
    content[at + 124 : at + 136] = field
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: claim(path, b"\x80" + b"\xff" * 11),  # 2 ** 88
        lambda path: claim(path, b"77777777777\0"),
        lambda path: claim(path, b"\xff" * 12),  # -1: backwards for ever
        lambda path: claim(path, b"-0000000512\0"),
        lambda path: claim(path, b"size\0" + bytes(7)),
        lambda path: cut(path, path.read_bytes().index(b"00190.webp\0") + 100),
        lambda path: cut(path, path.read_bytes().index(b"00190.webp\0") + 520),
    ],
)
def test_the_rest_of_a_damaged_shard_is_left_out_and_the_shard_named(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = write(tmp_path / "x.tar", samples(0, 200), tarfile.USTAR_FORMAT)
    damage(path)
    dataset = loaded(path)
    assert numbers(dataset) == [f"{i:05}" for i in range(190)]
    note = dataset.note_on_bad_files()
    assert "1 of 191 image files" in note
    assert f"{path} (" in note


def property_header(text: bytes, kind: bytes = tarfile.XHDTYPE) -> tuple:
    return member("properties", text, kind)


@pytest.mark.parametrize(
    "header",
    [
        property_header(b"0 path=x\n"), property_header(b"99999999 path=x\n"),
        property_header(b"x" * 100), property_header(b"11 size=-5\n"),
        property_header(b"-5 path=x\n"), property_header(b"x" * 2**21),
        property_header(b"x" * 2**21, tarfile.GNUTYPE_LONGNAME),
    ],
)  # fmt: skip
def test_hostile_headers_end_a_shard_or_are_passed_over(tmp_path: Path, header: tuple) -> None:
    contents = [*samples(0, 200), header, member("last.png", picture(1))]
    dataset = loaded(write(tmp_path / "x.tar", contents, tarfile.USTAR_FORMAT))
    assert numbers(dataset)[:200] == [f"{i:05}" for i in range(200)]


def test_links_and_names_that_lead_elsewhere_are_counted_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    hostile = [
        member("../../up.png", picture(0)), member("/absolute.png", picture(0)),
        member("a/../../b.png", picture(0)), member("link.png", kind=tarfile.SYMTYPE),
        member("hard.png", kind=tarfile.LNKTYPE), member("device.png", kind=tarfile.CHRTYPE),
        member("pipe.png", kind=tarfile.FIFOTYPE), member("..", kind=tarfile.DIRTYPE),
    ]  # fmt: skip
    path = write(inside / "x.tar", [*samples(0, 800), *hostile])
    before = sorted(tmp_path.rglob("*"))
    dataset = loaded(path)
    for i in range(0, len(dataset.train), 50):
        dataset.train.images.read(i)
    assert len(numbers(dataset)) == 800
    assert len(dataset.bad_files.paths) == 7  # all but the folder, which is no image by its name
    assert sorted(tmp_path.rglob("*")) == before
    assert "7 of 807 image files" in dataset.note_on_bad_files()
    path = write(inside / "y.tar", [*samples(0, 600), *hostile])
    with pytest.raises(TrainerError, match=r"7 of 607 .* more than 1%"):
        loaded(path)


def test_many_members_cost_little_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x.png").tobuf(tarfile.USTAR_FORMAT)
    many = count(20_000, 1_000_000)
    (tmp_path / "x.tar").write_bytes(header * many)
    tracemalloc.start()
    index = webdataset.Index([tmp_path / "x.tar"])
    ours = tracemalloc.Filter(True, "*/swav_trainer/*")
    held = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
    tracemalloc.stop()
    assert len(index.source) == many
    assert 40 * many < sum(statistic.size for statistic in held) < 50 * many  # five numbers


def test_many_useless_members_end_the_index(tmp_path: Path) -> None:
    link = tarfile.TarInfo("x.png")
    link.type = tarfile.SYMTYPE
    header = link.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "x.tar").write_bytes(header * (webdataset.MOST_USELESS + 1))
    with pytest.raises(TrainerError, match=r"more than 10000 members are links.*x\.png"):
        loaded(tmp_path / "x.tar")


def test_a_shard_that_vanishes_or_changes_during_a_run(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", samples(0, 20))
    images = loaded(path).train.images
    path.write_bytes(bytes(path.stat().st_size))
    assert images.source.decode(3) is None
    assert images.source.path(3).name.startswith("byte ")
    path.unlink()
    with pytest.raises(TrainerError, match=r"cannot read .*x\.tar: No such file"):
        images.read(0)
