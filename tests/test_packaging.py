"""What is packaged: which files, under which bounds, and that the compiled module's stub is true.

`tools/check_wheel.sh` installs the built files in clean environments; here is what needs no build.
"""

import ast
import importlib.util
import io
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pathspec
import pytest

import swav_kernels as sk
from swav_kernels import native

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STUB = ast.parse((ROOT / "swav_kernels/_C.pyi").read_text())
BINDINGS = (ROOT / "csrc/bindings.cpp").read_text()
VERSION = sk.__version__


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_contents = load_tool("check_contents")

# --- the stub -------------------------------------------------------------------------------------

Signature = list[tuple[str, str]]  # names and types of the arguments
STUB_TYPES = {"Address": "int", "int": "int", "int64_t": "int", "double": "float", "bool": "bool",
              "Assign": "Sequence[int]", "std::vector<Address>": "Sequence[int]"}  # fmt: skip


def stub_class(name: str) -> dict[str, Signature]:
    """The methods of a class of the stub."""
    node = next(x for x in STUB.body if isinstance(x, ast.ClassDef) and x.name == name)
    return {
        method.name: [(arg.arg, ast.unparse(arg.annotation)) for arg in method.args.posonlyargs[1:]]
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }


def bound(text: str) -> dict[str, Signature]:
    """The kernels that a part of bindings.cpp defines, as its lambdas name their arguments."""
    found = {}
    for name, arguments in re.findall(
        r'define\(\s*module, "(\w+)",\s*\+\[\]\((.*?)\) \{', text, re.S
    ):
        arguments = re.sub(r"/\* (\w+).*?\*/", r"\1", arguments, flags=re.S)
        pairs = [" ".join(argument.split()).rpartition(" ") for argument in arguments.split(",")]
        found[name] = [(argument, STUB_TYPES[kind]) for kind, _, argument in pairs]
    return found


def test_the_stub_names_the_arguments_of_the_bindings() -> None:
    cpu, _, cuda = BINDINGS.partition("void define_cuda(")
    assert len(bound(cpu)) >= 12
    assert stub_class("CpuKernels") == bound(cpu)
    assert len(bound(cuda)) >= 5
    assert stub_class("CudaKernels") == bound(cuda)


def documented(function: object) -> list[str]:
    """The argument types of a compiled function, by its docstring."""
    text = function.__doc__.partition("(")[2].rpartition(") -> ")[0]
    kinds = re.findall(r"arg\d+: (.*?)(?=, arg\d+: |$)", text)
    number = {"SupportsInt": "int", "SupportsFloat": "float"}
    return [
        ("Sequence[{}]" if "Sequence" in kind else "{}").format(
            next((number[key] for key in number if key in kind), kind)
        )
        for kind in kinds
    ]


def test_the_stub_has_the_types_of_the_compiled_module() -> None:
    module = native.load()
    classes = {"cpu": ("_Cpu", "CpuKernels"), "cuda": ("_Cuda", "CudaKernels")}
    for place in ("cpu", "cuda") if native.cuda_is_built() else ("cpu",):
        names = classes[place]
        part = getattr(module, place)
        for owner, stub in ((part, names[0]), (part.float32, names[1]), (part.float64, names[1])):
            functions = {
                name: documented(function)
                for name, function in vars(owner).items()
                if callable(function) and not name.startswith("_")
            }
            want = {
                name: [kind for _, kind in arguments]
                for name, arguments in stub_class(stub).items()
            }
            assert functions == want, f"{place}: {owner.__name__}"
    top = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in vars(module) if callable(vars(module)[name])} - {"__loader__"} == top


# --- which files ----------------------------------------------------------------------------------


def tracked(*folders: str) -> list[str]:
    """Files that git knows, or all where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return listed.stdout.split()


def test_the_sdist_names_every_source_and_no_test() -> None:
    names = pathspec.GitIgnoreSpec.from_lines(PROJECT["tool"]["scikit-build"]["sdist"]["include"])
    sources = tracked("swav_kernels", "python", "csrc", "cmake")
    assert len(sources) > 150
    assert not [name for name in sources if not names.match_file(name)]
    others = set(tracked()) - set(sources)
    assert {name for name in others if "/" in name and names.match_file(name)} == set()
    assert not names.match_file("swav_kernels/_C.cpython-311-x86_64-linux-gnu.so")
    assert not names.match_file("swav_kernels/__pycache__/checks.cpython-311.pyc")


def test_the_check_of_contents_knows_every_file_of_the_packages() -> None:
    for name in tracked("swav_kernels", "python"):
        assert check_contents.PACKAGE.fullmatch(name.removeprefix("python/")), name


def test_a_build_downloads_nothing() -> None:
    for name in [*tracked("cmake"), "CMakeLists.txt"]:
        text = (ROOT / name).read_text()
        assert not re.search(r"FetchContent|ExternalProject|DOWNLOAD|https?://|\bgit\b", text), name


def test_wheels_are_built_for_these_and_share_the_threads_of_torch() -> None:
    settings = PROJECT["tool"]["cibuildwheel"]
    assert settings["build"] == [f"cp3{minor}-*" for minor in (11, 12, 13, 14)]
    classifiers = PROJECT["project"]["classifiers"]
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    for architecture in settings["linux"]["archs"]:
        assert settings["linux"][f"manylinux-{architecture}-image"] == "manylinux_2_28"
    assert "--exclude libgomp.so.1" in settings["linux"]["repair-wheel-command"]


def test_the_changelog_has_this_version() -> None:
    assert f"\n## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


# --- the check of contents finds what is wrong ----------------------------------------------------

INFO = f"swav_kernels-{VERSION}.dist-info"
METADATA = (
    f"Metadata-Version: 2.4\nName: swav-kernels\nVersion: {VERSION}\n"
    "License-Expression: Apache-2.0\nLicense-File: LICENSE\n"
    "Requires-Dist: torch>=2.10\nRequires-Dist: numpy\n"
    'Requires-Dist: rich>=14; extra == "train"\n\ntext\n'
)
MODULE = "swav_kernels/_C.cpython-311-x86_64-linux-gnu.so"


def wheel_files() -> dict[str, bytes]:
    """What a good wheel holds."""
    files = dict.fromkeys(check_contents.NEEDED, b"")
    files["swav_kernels/__init__.py"] = f'__version__ = "{VERSION}"\n'.encode()
    files[f"{INFO}/METADATA"] = METADATA.encode()
    files[MODULE] = b"\x7fELF"
    return files


def faults(files: dict[str, bytes], folder: Path, tag: str = "cp311-cp311-linux_x86_64") -> str:
    path = folder / f"swav_kernels-{VERSION}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return "\n".join(check_contents.faults_of_wheel(path))


def test_a_good_wheel_has_no_faults(tmp_path: Path) -> None:
    files = wheel_files()
    assert faults(files, tmp_path) == ""
    del files[MODULE]
    assert faults(files, tmp_path, "py3-none-any") == ""


def bad_wheels() -> Iterator[tuple[str, dict[str, bytes | None], str]]:
    """Name, what is changed (None: left out), a part of the fault."""
    yield "stray", {"tests/test_sinkhorn.py": b""}, "tests/test_sinkhorn.py is not of the package"
    yield "source", {"swav_kernels/sinkhorn.cpp": b""}, "sinkhorn.cpp is not of the package"
    yield "library", {"swav_kernels.libs/libgomp.so.1": b""}, "libgomp.so.1 is not of the package"
    yield "missing", {"swav_kernels/py.typed": None}, "py.typed is missing"
    yield "no module", {MODULE: None}, "its compiled modules are []"
    yield "large", {MODULE: b"\0" * 1_048_577}, "bytes are more than"
    other = METADATA.replace(f"Version: {VERSION}", "Version: 9.9").encode()
    yield "version", {f"{INFO}/METADATA": other}, "its metadata have version 9.9"
    more = METADATA.replace("numpy\n", "numpy\nRequires-Dist: scipy\n").encode()
    yield "requirement", {f"{INFO}/METADATA": more}, "['numpy', 'scipy', 'torch']"
    free = METADATA.replace("License-File: LICENSE\n", "").encode()
    yield "licence", {f"{INFO}/METADATA": free}, "names no licence"
    new = f'__version__ = "{VERSION}1"'.encode()
    yield "name", {"swav_kernels/__init__.py": new}, "another version than the package"


@pytest.mark.parametrize(("name", "change", "fault"), list(bad_wheels()), ids=lambda x: str(x)[:12])
def test_a_bad_wheel_has_its_fault(
    name: str, change: dict[str, bytes | None], fault: str, tmp_path: Path
) -> None:
    files = {key: data for key, data in (wheel_files() | change).items() if data is not None}
    assert fault in faults(files, tmp_path)


def test_a_wheel_for_any_machine_holds_no_compiled_module(tmp_path: Path) -> None:
    assert MODULE in faults(wheel_files(), tmp_path, "py3-none-any")


def test_a_large_wheel_is_one_with_gpu_code_or_too_large(tmp_path: Path) -> None:
    large = wheel_files()
    large[MODULE] += b"\0" * 1_500_000
    assert "more than 1,048,576" in faults(large, tmp_path)
    large[MODULE] += b".nv_fatbin\0"
    assert faults(large, tmp_path) == ""


def test_an_sdist_holds_sources_and_no_links(tmp_path: Path) -> None:
    def write(extra: dict[str, bytes], link: str = "") -> str:
        path = tmp_path / f"swav_kernels-{VERSION}.tar.gz"
        files = {
            name.replace("swav_trainer", "python/swav_trainer"): data
            for name, data in wheel_files().items()
            if name in check_contents.NEEDED
        }
        files |= {"PKG-INFO": METADATA.encode(), "csrc/cpu/sinkhorn.cpp": b""} | extra
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"swav_kernels-{VERSION}/{name}")
                member.size = len(data)
                if name == link:
                    member.type, member.size, member.linkname = tarfile.SYMTYPE, 0, "/etc/passwd"
                archive.addfile(member, io.BytesIO(data))
        return "\n".join(check_contents.faults_of_sdist(path))

    assert write({}) == ""
    assert "build/log is needed for no build" in write({"build/log": b""})
    assert "LICENSE is a link" in write({"LICENSE": b""}, link="LICENSE")


def test_a_tag_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults(wheel_files(), tmp_path)
    path = str(next(tmp_path.glob("*.whl")))
    monkeypatch.setattr("sys.argv", ["check_contents.py", "--tag", f"v{VERSION}", path])
    check_contents.main()
    monkeypatch.setattr("sys.argv", ["check_contents.py", "--tag", "v9.9", path])
    with pytest.raises(SystemExit, match=r"its tag is v9\.9"):
        check_contents.main()
