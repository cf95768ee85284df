"""The CUDA kernels: how they compile and load without a GPU, and what only a GPU can show.

Their values are tested with every other backend's, in test_sinkhorn*.py and
test_numerics_policy.py, where a GPU is at hand.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compare import assert_codes, make_scores, sinkhorn

import swav_kernels as sk
from swav_kernels import dispatch, native
from swav_kernels.native import sinkhorn as kernels
from swav_kernels.ops.iteration import solve

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
BUILD = "".join((ROOT / name).read_text() for name in ("CMakeLists.txt", "cmake/cuda.cmake"))
STATIC_SHARED_BYTES = 48 * 1024
# name: processors, and the shared memory that a block may ask for
CHIPS = {"A100": (108, 163 * 1024), "H100": (132, 227 * 1024), "B200": (148, 227 * 1024)}
KERNELS = ("column_stats", "column_sums", "combine", "finish", "codes", "on_chip")


def find_nvcc() -> str | None:
    """The compiler that cmake/cuda.cmake finds."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [os.path.join(home, "bin") for home in (*homes, "/usr/local/cuda") if home]
    return os.environ.get("CUDACXX") or shutil.which(
        "nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), *places])
    )


NVCC = find_nvcc()
HAS_GPU = "cuda" in sk.available_backends()


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs on the `cuda` backend alone."""
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="no GPU")(test))


# --- compiling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100"])
def test_kernels_compile_without_spills(architecture: str, tmp_path: Path) -> None:
    assert f"{architecture.removeprefix('sm_')}-real" in BUILD  # what users get
    if NVCC is None:
        return
    command = f"{NVCC} -std=c++17 -O3 -arch={architecture} -cubin -Xptxas=-v -Werror=all-warnings"
    text = ""
    for source in SOURCES:
        result = subprocess.run(
            [*command.split(), "-o", tmp_path / "kernels.cubin", source],
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        text += result.stderr
    for kernel in KERNELS:
        assert f"{kernel}_kernel" in text
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", text)
    assert len(frames) == text.count("Compiling entry function") >= 18
    assert set(frames) == {("0", "0", "0")}
    assert max(map(int, re.findall(r"(\d+) bytes smem", text))) <= STATIC_SHARED_BYTES


def test_kernels_use_no_atomics_and_no_approximate_arithmetic() -> None:
    assert "fast_math" not in BUILD
    for path in (ROOT / "csrc/cuda").iterdir():
        assert not re.search(r"atomic|__expf|__logf|__fdividef", path.read_text()), path


@pytest.mark.needs("cmake")
@pytest.mark.parametrize("choice", ["AUTO", "ON", "OFF"])
def test_a_broken_nvcc_costs_the_cuda_kernels_only(choice: str, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES CXX)\n"
        f'include("{ROOT}/cmake/cuda.cmake")\nmessage(STATUS "has CUDA: ${{SWAV_HAS_CUDA}}")\n'
    )
    result = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DSWAV_CUDA={choice}"],
        capture_output=True, text=True, env={**os.environ, "CUDACXX": str(nvcc)},
    )  # fmt: skip
    if choice == "ON":
        assert result.returncode != 0
        assert "SWAV_CUDA=ON, but there is no nvcc that works" in result.stderr
        assert "put nvcc on PATH or set CUDACXX to it" in " ".join(result.stderr.split())
        return
    assert result.returncode == 0, result.stderr
    assert "has CUDA: OFF" in result.stdout
    assert ("no nvcc that works here, so CPU kernels only" in result.stdout) == (choice == "AUTO")


def test_given_weights_leave_nothing_for_f_to_drift_by() -> None:
    scores = torch.zeros(2, 5, 4)  # [A, N, K]
    assert kernels.level_weights(scores, None, None) is None  # N and K tell it all
    samples = torch.tensor([[1.0, 1, 0, 0, 1], [1, 1, 1, 1, 1]])
    shares = torch.tensor([0.0, 1, 2, 3]).log()  # the first prototype is off
    for w, r in ((samples, None), (None, shares), (samples, shares)):
        log_r = kernels.level_weights(scores, w, r)
        assert log_r is not None
        total = 5.0 if w is None else 4.0  # a problem's samples, on average
        torch.testing.assert_close(log_r.exp().sum(), torch.tensor(total))
        moved = log_r - (torch.zeros(4) if r is None else r)
        torch.testing.assert_close(moved[1:], moved[1].expand(3))
    off = kernels.level_weights(scores, torch.zeros(2, 5), shares)  # no sample counts
    torch.testing.assert_close(off, shares)


# --- the built module -----------------------------------------------------------------------------


def test_the_module_has_cuda_kernels_where_there_is_a_compiler_for_them() -> None:
    if NVCC is not None:
        assert native.cuda_is_built(), f"built without {NVCC}: install again, with SWAV_CUDA=AUTO"
    if not native.cuda_is_built():
        assert "was built without CUDA" in str(dispatch.why_not("cuda"))


def test_the_module_needs_no_cuda_library_to_be_imported() -> None:
    module = native.load()
    dynamic = subprocess.run(
        ["readelf", "--dynamic", module.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed
    assert not [name for name in needed if "cuda" in name]
    code = (
        "import swav_kernels as sk, swav_kernels._C as module; "
        "print(hasattr(module, 'cuda'), 'cuda' in sk.available_backends())"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=hidden
    ).stdout
    assert printed.split() == [str(native.cuda_is_built()), "False"]


def test_an_error_names_the_op_and_what_cuda_says() -> None:
    if not native.cuda_is_built():
        with pytest.raises(ValueError, match="sinkhorn: backend 'cuda' cannot run here"):
            sk.sinkhorn(torch.eye(3), backend="cuda")
        return
    no_such_device = 9999
    for acc, dtype in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        with pytest.raises(RuntimeError, match=r"^sinkhorn: CUDA error: \w+ .+"):
            native.cuda_kernels(acc).sinkhorn(
                0, native.DTYPES[dtype], 0, 1, 4, 4, 0.05, 3, 0, no_such_device, 0
            )


def test_problems_are_laid_out_within_the_chip() -> None:
    if not native.cuda_is_built():
        assert not hasattr(native.load(), "cuda")
        return
    plan_on_chip = native.load().cuda.plan_on_chip
    num_samples = (1, 2, 63, 64, 132, 133, 256, 513, 4096, 20000, 10**6)
    num_prototypes = (1, 3, 300, 3000, 3001, 30000, 10**6)
    for n, k, dtype in itertools.product(num_samples, num_prototypes, native.DTYPES):
        for processors, limit in CHIPS.values():
            rows, blocks, problems, size = plan_on_chip(
                native.DTYPES[dtype], n, k, processors, limit
            )
            least = n * k * dtype.itemsize
            if rows == 0:  # only for a reason
                row = k * dtype.itemsize
                assert n > 128 * processors or least > processors * limit / 2 or row > limit / 8
                continue
            assert rows * (blocks - 1) < n <= rows * blocks
            assert problems >= 1
            assert problems * blocks <= processors
            assert least / blocks <= size <= limit
    processors, limit = CHIPS["H100"]

    def plan(dtype: torch.dtype, n: int, k: int) -> tuple[int, ...]:
        return plan_on_chip(native.DTYPES[dtype], n, k, processors, limit)[:3]

    assert plan(torch.float32, 256, 3000) == (4, 64, 2)  # two crops in one launch
    assert plan(torch.bfloat16, 4096, 3000) == (32, 128, 1)
    assert plan(torch.float32, 4096, 3000) == (0, 0, 0)
    assert plan(torch.float32, 0, 3000) == (0, 0, 0)


# --- both forms of the kernels --------------------------------------------------------------------


# too many rows, too many prototypes, and too much of both to stay on a chip
@pytest.mark.heavy
@pytest.mark.op("sinkhorn")
@pytest.mark.parametrize(("n", "k"), [(20000, 3), (2, 70001), (2000, 3001)])
def test_shapes_that_fit_on_no_chip(backend: str, device: str, n: int, k: int) -> None:
    scores = make_scores("cosines", n, k)
    codes = sk.sinkhorn(scores.to(device), backend=backend)
    assert_codes(codes, sinkhorn(scores.double()), scores, 0.05)


@on_gpu
@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_sweeps_one_by_one_give_what_one_launch_gives(
    dtype: torch.dtype, is_weighted: bool
) -> None:
    scores = torch.stack([make_scores(kind, 129, 301) for kind in ("cosines", "masked")])
    scores = scores.to("cuda", dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    weights = torch.linspace(0, 2, 258, device="cuda", dtype=acc).view(2, 129)
    w = weights if is_weighted else None
    log_r = torch.linspace(-1, 1, 301, device="cuda", dtype=acc) if is_weighted else None
    f = kernels.potentials(scores, w, log_r, 0.05, 3)
    by_sweeps = solve(
        lambda: kernels.column_stats(scores, w, 0.05),
        lambda f: kernels.column_sums(scores, f, w, 0.05),
        3, log_r, None, None,
    )  # fmt: skip
    torch.testing.assert_close(f, by_sweeps, rtol=0, atol=2e-5 if acc == torch.float32 else 1e-12)


@on_gpu
@pytest.mark.parametrize(("n", "k"), [(256, 3000), (20000, 3)])
def test_a_cuda_graph_replays_the_same_bits(n: int, k: int) -> None:
    scores = make_scores("cosines", n, k).cuda()
    wanted = sk.sinkhorn(scores, backend="cuda")  # both forms: on the chip, and through memory
    wanted_f = sk.sinkhorn_potentials(scores, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = sk.sinkhorn(scores, backend="cuda")
        f = sk.sinkhorn_potentials(scores, backend="cuda")
    for _ in range(50):
        codes.zero_(), f.zero_()
        graph.replay()
        assert torch.equal(codes, wanted)
        assert torch.equal(f, wanted_f)


@on_gpu
def test_kernels_run_on_the_current_stream() -> None:
    scores = make_scores("cosines", 256, 3000).cuda()
    wanted = sk.sinkhorn(scores, backend="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(scores)
        torch.cuda._sleep(10**8)  # only a kernel queued behind it can see the scores
        late.copy_(scores)
        codes = sk.sinkhorn(late, backend="cuda")
    stream.synchronize()
    assert torch.equal(codes, wanted)


@on_gpu
def test_more_than_two_to_the_31_elements() -> None:
    n, k = 720_000, 3000
    scores = torch.rand(n, k, device="cuda", dtype=torch.bfloat16)
    assert scores.numel() > 2**31
    f = kernels.potentials(scores[None], None, None, 0.05, 2)
    marginals = kernels.column_sums(scores[None], f, None, 0.05)
    assert abs(marginals.double().sum() - n) <= 1e-6 * n
    tail = scores[-5:]
    lse = torch.logsumexp(scores[:, -3:].double() / 0.05, 0)
    column_max, sums = kernels.column_stats(scores[None], None, 0.05)
    got = (column_max + sums.log())[0, -3:].double()
    torch.testing.assert_close(got, lse, rtol=1e-6, atol=1e-5)
    codes = torch.empty(1, n, k, device="cuda")
    kernels.codes(scores[None], f, 0.05, False, True, codes)
    wanted = torch.softmax(tail.double() / 0.05 + f.double(), -1)
    assert (codes[0, -5:] - wanted).abs().max() <= 2e-6
