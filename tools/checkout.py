"""Builds of the kernels for tests, and the package around one, for the tools beside this file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# An editable install stands before every path: its finder goes, so that the package beside this
# file is the one imported. Python runs this at its start, in every process of a test.
SITE = """import sys

sys.meta_path[:] = [x for x in sys.meta_path if "Redirecting" not in type(x).__name__]
"""


def build(source: Path, folder: Path, target: str, **options: str) -> Path:
    """Build a CMake target of the checkout `source` in `folder`; returns the file of the target."""
    executables = Path(sys.executable).parent  # where the development extra puts cmake and ninja
    path = os.pathsep.join([str(executables), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        sys.exit("tools/checkout.py: there is no cmake: pip install -c constraints.txt -e '.[dev]'")
    pybind11 = subprocess.check_output(
        [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
    ).strip()
    definitions = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS_DEBUG": "-g1",  # lines for reports, no more
        "SKBUILD_PROJECT_NAME": "swav_kernels",
        "SKBUILD_PROJECT_VERSION": version(),
        "SKBUILD_PROJECT_VERSION_FULL": version(),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11,
        "SWAV_CUDA": "OFF",
        **options,
    }
    environment = {**os.environ, "PATH": path}
    for command in (
        [cmake, "-S", source, "-B", folder, "-G", "Ninja"]
        + [f"-D{name}={value}" for name, value in definitions.items()],
        [cmake, "--build", folder, "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"{target} does not build:\n{done.stdout}{done.stderr}")
    (built,) = [x for x in folder.glob(f"{target}*") if x.is_file()]
    return built


def version() -> str:
    """The version that the compiled module must name."""
    line = next(
        x
        for x in (ROOT / "swav_kernels/__init__.py").read_text().splitlines()
        if x.startswith("__version__")
    )
    return line.split('"')[1]


def overlay(source: Path, folder: Path, module: Path | None = None) -> Path:
    """A copy of the package in `source` for PYTHONPATH, with this compiled module or its own."""
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__", *(["*.so"] if module else []))
    shutil.copytree(source / "swav_kernels", folder / "swav_kernels", ignore=unwanted)
    if module is not None:
        shutil.copy(module, folder / "swav_kernels")
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def environment_of(package: Path, **more: str) -> dict[str, str]:
    """Variables for processes that import the package in the folder `package`, and no other."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TRITON_INTERPRET", "SWAV_KERNELS_BACKEND", "SWAV_KERNELS_CPU")
    }
    paths = [str(package), str(ROOT), str(ROOT / "python")]
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **more}


def in_checkout(root: Path) -> list[str]:
    """Options of pytest for the tests of a checkout, from any folder."""
    return ["-c", str(root / "pyproject.toml"), "-p", "no:cacheprovider"]


def located(root: Path, arguments: list[str]) -> list[str]:
    """The same with the paths of tests in that checkout."""
    return [str(root / x) if x.startswith("tests/") else x for x in arguments]


def run(
    command: list[str], environment: dict[str, str], timeout: float | None = None
) -> tuple[int, str]:
    """Exit status and everything that was printed; in the folder of the package that is tested."""
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=environment["PYTHONPATH"].partition(os.pathsep)[0],  # `python -c` looks there first
        timeout=timeout,
    )
    return done.returncode, done.stdout
