"""Check what wheels and sdists hold: the package and nothing else, one version, a bounded size.

python tools/check_contents.py [--tag v0.1.0] FILE.whl|FILE.tar.gz ...
"""

import argparse
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

MIB = 2**20
LARGEST = {"cpu": MIB, "cuda": 20 * MIB, "any": MIB // 2, "sdist": MIB // 2}
PACKAGE = re.compile(
    r"swav_kernels/(\w+/)*\w+\.py"
    r"|swav_kernels/(py\.typed|_C\.pyi)"
    r"|swav_trainer/(\w+/)*\w+\.py"
    r"|swav_trainer/presets/\w+\.toml"
    r"|swav_trainer/report/(page\.(css|html)|map\.js)"
)
MODULE = re.compile(r"swav_kernels/_C\.[\w.-]+\.(so|pyd)")
DIST_INFO = re.compile(
    r"swav_kernels-[\w.]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|licenses/LICENSE)"
)
SOURCE = re.compile(
    r"CMakeLists\.txt|cmake/\w+\.cmake|csrc/bindings\.cpp|csrc/kernels\.h"
    r"|csrc/(cpu/\w+\.(cpp|h)|cuda/\w+\.(cu|cuh|h))"
    r"|pyproject\.toml|constraints\.txt|PKG-INFO|(README|CHANGELOG|SECURITY)\.md|LICENSE"
)
NEEDED = ("swav_kernels/__init__.py", "swav_kernels/py.typed", "swav_kernels/_C.pyi",
          "swav_trainer/cli.py", "swav_trainer/presets/mnist5k.toml",
          "swav_trainer/report/page.html")  # fmt: skip


def faults_of_wheel(path: Path) -> Iterator[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        modules = [name for name in names if MODULE.fullmatch(name)]
        kind = "any" if path.stem.endswith("-py3-none-any") else "cpu"
        if modules and b".nv_fatbin" in archive.read(modules[0]):
            kind = "cuda"
        if len(modules) != (kind != "any"):
            yield f"its compiled modules are {modules}"
        for name in names:
            if not any(p.fullmatch(name) for p in (PACKAGE, MODULE, DIST_INFO)):
                yield f"{name} is not of the package"
        yield from faults_of_size(path, kind)
        yield from (f"{name} is missing" for name in NEEDED if name not in names)
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        found = message_from_bytes(archive.read(info))
        version = version_of(archive.read("swav_kernels/__init__.py"))
        yield from faults_of_metadata(found, version)
        if path.name.split("-")[1] != version:
            yield f"its name has another version than the package, {version}"


def faults_of_sdist(path: Path) -> Iterator[str]:
    """What is wrong with an sdist."""
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2]: member for member in archive if not member.isdir()}
        for name, member in files.items():
            inside = name.removeprefix("python/")
            if not member.isfile():
                yield f"{name} is a link or a device"
            if not PACKAGE.fullmatch(inside) and not SOURCE.fullmatch(name):
                yield f"{name} is needed for no build"
        inside = {name.removeprefix("python/") for name in files}
        yield from (f"{name} is missing" for name in NEEDED if name not in inside)
        yield from faults_of_size(path, "sdist")

        def read(name: str) -> bytes:
            stream = archive.extractfile(files[name])
            assert stream is not None
            return stream.read()

        version = version_of(read("swav_kernels/__init__.py"))
        yield from faults_of_metadata(message_from_bytes(read("PKG-INFO")), version)


def faults_of_size(path: Path, kind: str) -> Iterator[str]:
    """Whether a file is too large for its kind."""
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes of {LARGEST[kind]:,} ({kind})")
    if size > LARGEST[kind]:
        yield f"{size:,} bytes are more than {LARGEST[kind]:,}"


def faults_of_metadata(found: Message, version: str) -> Iterator[str]:
    """What is wrong with the core metadata."""
    if found["Version"] != version:
        yield f"its metadata have version {found['Version']}, the package has {version}"
    core = sorted(
        re.split(r"[^\w-]", line)[0]
        for line in found.get_all("Requires-Dist", [])
        if "extra ==" not in line
    )
    if core != ["numpy", "torch"]:
        yield f"it requires {core}, not numpy and torch alone"
    if not found["License-Expression"] or not found.get_all("License-File"):
        yield "it names no licence"


def version_of(init: bytes) -> str:
    """Return the version that a package's __init__.py states."""
    match = re.search(r'^__version__ = "([^"]+)"$', init.decode(), re.MULTILINE)
    assert match, "no __version__ in swav_kernels/__init__.py"
    return match[1]


def main() -> None:
    """Print each file's size and faults; exit 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", help="the release's tag: v and the version")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    faults = []
    for path in arguments.files:
        find = faults_of_wheel if path.suffix == ".whl" else faults_of_sdist
        faults += [f"{path.name}: {fault}" for fault in find(path)]
        version = path.name.removesuffix(".tar.gz").split("-")[1]
        if arguments.tag not in (None, f"v{version}"):
            faults.append(f"{path.name}: its tag is {arguments.tag}, not v{version}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
