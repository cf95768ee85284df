"""The grid: the file name is the op, the folder is the backend. Says what a new op still lacks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import swav_kernels as sk
from benchmarks.cases import SHAPES
from swav_kernels import compat, dispatch, library

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "swav_kernels/ops": "py",
    "swav_kernels/library": "py",
    "swav_kernels/reference": "py",
    "swav_kernels/native": "py",
    "swav_kernels/triton_kernels": "py",
    "csrc/cpu": "cpp",
    "tests": "py",
}
TABLE_COLUMNS = {"cpu": "csrc/cpu/{}.cpp", "cuda": "csrc/cuda/{}.cu"}
SOURCES = [
    path
    for folder in ("csrc", "swav_kernels", "python", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")
]


@pytest.mark.parametrize("op", dispatch.OPS)
def test_every_op_has_a_file_in_every_column(op: str) -> None:
    for folder, suffix in COLUMNS.items():
        name = f"test_{op}" if folder == "tests" else op
        assert (ROOT / folder / f"{name}.{suffix}").is_file(), (
            f"{folder}/{name}.{suffix} is missing"
        )
    assert op in SHAPES, "benchmarks/cases.py has no case of it"
    assert op in sk.__all__
    assert op in library.OPS, "swav_kernels/library does not register it"
    kernels = (ROOT / "csrc/kernels.h").read_text()
    assert re.search(rf"\(\*{op}|\(\*\w*{op.partition('_')[0]}", kernels), "not in csrc/kernels.h"


@pytest.mark.parametrize("name", dispatch.BACKENDS)
def test_the_dispatch_table_names_modules_and_sources_that_exist(name: str) -> None:
    row = dispatch.BACKENDS[name]
    for op in row.ops:
        assert (ROOT / row.package.replace(".", "/") / f"{op}.py").is_file()
        if name in TABLE_COLUMNS:
            assert (ROOT / TABLE_COLUMNS[name].format(op)).is_file()


def test_only_the_bindings_know_python_and_nothing_knows_torch() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        text = path.read_text()
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", text), path
        assert path.name == "bindings.cpp" or "pybind11" not in text, path
        # x86 headers stand behind a check of the processor, for a generic build has none
        for include in re.finditer(r"#include <(\w*intrin|cpuid)\.h>", text):
            condition = text[: include.start()].rstrip().rpartition("\n#if")[2]
            assert "__AVX512BF16__" in condition or "SWAV_X86" in condition, path


def test_no_source_has_more_than_300_lines() -> None:
    long = [path.name for path in SOURCES if len(path.read_text().splitlines()) > 300]
    assert not long, "split where it reads better"


def test_the_trainer_calls_public_names_only() -> None:
    modules = sorted((ROOT / "python/swav_trainer").rglob("*.py"))
    assert modules
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                package, _, rest = name.partition(".")
                assert package != "swav_kernels" or rest in ("", *sk.__all__), f"{path}: {name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "sk" or node.attr in sk.__all__, f"{path}: sk.{node.attr}"


def test_every_drop_in_is_offered_and_uses_no_kernels_of_its_own() -> None:
    modules = {path.stem: path for path in (ROOT / "swav_kernels/compat").glob("*.py")}
    shared = {"__init__", "inputs", "targets", "patching"}
    assert modules.keys() - shared == set(compat.__all__)
    allowed = r"swav_kernels\.(checks|distributed|ops|compat)(\.|$)"
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("swav_kernels"):
                names = [node.module]
                if node.module == "swav_kernels":
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                assert all(re.match(allowed, name) for name in names), f"{path}: {names}"


def test_import_brings_no_heavy_module() -> None:
    code = (
        "import sys, swav_kernels\n"
        "heavy = {'triton', 'torchvision', 'matplotlib', 'cv2', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
