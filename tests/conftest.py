"""Every test of an op that takes `backend` runs on each backend this machine has.

Under TRITON_INTERPRET=1 only the interpreted backend is tested, on small shapes: the others ran
without it, and one interpreted tile costs a fifth of a millisecond an operation.
"""

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from depth import DEEP

import swav_kernels as sk
from swav_kernels import dispatch

pytest.register_assert_rewrite("compare")  # the numbers of a failed bound in the report

# whole files that the fast suite leaves out: runs of several processes, compilers, browsers, sweeps
SLOW = {
    "test_cuda_build", "test_torch_features", "test_trainer_backends", "test_trainer_kills",
    "test_trainer_libraries", "test_trainer_rank_faults", "test_trainer_ranks",
    "test_trainer_report", "test_trainer_runs", "test_trainer_sharding", "test_trainer_sweep",
    "test_triton_compile",
}  # fmt: skip
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU_BACKENDS = ("triton", "cuda")
OPTIONAL_COMMANDS = ("aarch64-linux-gnu-g++", "chromium")
MARKERS = (
    "op(name): the op whose backends a test runs on (the default is swav_loss)",
    "heavy: large shapes, too slow for interpreted Triton",
    "interpreted: tests interpreted Triton itself: runs under TRITON_INTERPRET=1 only",
    "float64: needs a backend that takes float64",
    "gpu: runs on a GPU only (set by conftest.py for the backends that do)",
    "deep: runs under SWAV_TESTS_DEEP=1 only, in .ci/deep",
    "slow: not of the fast suite, `pytest -m 'not slow'`",
    "needs(command): runs where that command is installed, and always under SWAV_TESTS_NEED_ALL=1",
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and keep one thread: exact timings, and safe forks."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: the same bits
    if INTERPRETED:
        # columns of NaN are tested on purpose
        config.addinivalue_line("filterwarnings", "ignore:All-NaN slice:RuntimeWarning")
        importlib.import_module("interpreter").install()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `backend` over those that can run the test's op here."""
    if "backend" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("op")
        op = marker.args[0] if marker else "swav_loss"
        names = [name for name in sk.available_backends() if dispatch.why_not(name, op) is None]
        metafunc.parametrize("backend", names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, rather than skip, what the chosen backends are not meant to run."""
    kept, dropped = [], []
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
        (kept if _is_meant_to_run(item) else dropped).append(item)
        if _backend(item) in GPU_BACKENDS and torch.cuda.is_available() and not INTERPRETED:
            item.add_marker("gpu")
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _backend(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("backend") if callspec else None


def pytest_report_header() -> str | None:
    """Say which tests a missing command takes away."""
    missing = [name for name in OPTIONAL_COMMANDS if shutil.which(name) is None]
    return f"not tested, for want of a command: {', '.join(missing)}" if missing else None


def _is_meant_to_run(item: pytest.Item) -> bool:
    backend = _backend(item)
    needs = item.get_closest_marker("needs")
    if needs and shutil.which(needs.args[0]) is None and "SWAV_TESTS_NEED_ALL" not in os.environ:
        return False
    if backend == "triton" and item.get_closest_marker("float64"):
        return False
    if item.get_closest_marker("deep") and not DEEP:
        return False
    if item.get_closest_marker("gpu") and (INTERPRETED or not torch.cuda.is_available()):
        return False
    if item.get_closest_marker("interpreted"):
        return INTERPRETED
    if not INTERPRETED or item.path.parent != Path(__file__).parent:
        return True
    return backend == "triton" and not item.get_closest_marker("heavy")


@pytest.fixture
def device(backend: str) -> str:
    """Where the tensors of a backend live."""
    return (
        "cuda"
        if backend in GPU_BACKENDS and torch.cuda.is_available() and not INTERPRETED
        else "cpu"
    )


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the thread count after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on digits."""
    from swav_trainer import cli  # the libraries of the trainer's extra

    run = tmp_path_factory.mktemp("runs") / "digits"
    options = ["--preset", "digits", "--epochs", "2", "--width", "4", "--output", str(run)]
    assert cli.main(["train", *options]) == 0
    return run
