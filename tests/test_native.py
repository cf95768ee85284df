"""The compiled module: that it runs, on each instruction set, and what happens without it."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compare import crops, random_codes

import swav_kernels as sk
from swav_kernels import dispatch, native

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc/cpu").glob("*.cpp"))
CPU_FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fopenmp"]
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512bf16", "amx")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, from another folder."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
    )


def available_sets() -> list[str]:
    """The instruction sets of this processor, as the module names them."""
    refusal = run_python("import swav_kernels._C", SWAV_KERNELS_CPU="none").stderr
    return refusal.partition("this processor has ")[2].partition(":")[0].split(", ")


# --- which backend really ran ---------------------------------------------------------------------

features, prototypes = crops(3, 9, 16, 37)
scores, codes = features @ prototypes.T, random_codes(2, 9, 37)
CALLS: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {
    "prototype_scores": (
        lambda **kw: sk.prototype_scores(features, prototypes, **kw),
        ("prototype_scores",),
    ),
    "sinkhorn": (lambda **kw: sk.sinkhorn(scores, **kw), ("sinkhorn",)),
    "swapped_cross_entropy": (
        lambda **kw: sk.swapped_cross_entropy(scores, codes, **kw),
        ("swapped_cross_entropy",),
    ),
    "swav_loss": (
        lambda **kw: sk.swav_loss(features, prototypes, **kw),
        ("swav_potentials", "swav_loss"),
    ),
    "prototype_distillation_loss": (
        lambda **kw: sk.prototype_distillation_loss(
            features, prototypes, features[:2], prototypes, **kw
        ),
        ("swav_potentials", "prototype_distillation_loss"),
    ),
}


@pytest.mark.parametrize("op", CALLS)
def test_the_module_counts_the_calls_of_its_kernels(op: str) -> None:
    call, kernels = CALLS[op]

    def counted(**keywords: str) -> dict[str, int]:
        before = native.load().calls()
        call(**keywords)
        after = native.load().calls()
        return {name: after[name] - before[name] for name in after if after[name] > before[name]}

    assert counted(backend="cpu") == dict.fromkeys(kernels, 1)
    assert counted() == dict.fromkeys(kernels, 1)
    assert counted(backend="reference") == {}


def test_swav_loss_runs_no_aten_op_as_large_as_the_scores() -> None:
    z, c = crops(4, 64, 32, 3000)
    z.requires_grad_(), c.requires_grad_()
    all_scores = 4 * 64 * 3000

    def largest_op(backend: str) -> int:
        with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
            loss, _ = sk.swav_loss(z, c, return_stats=True, backend=backend)
            loss.backward()
        sizes = [abs(event.self_cpu_memory_usage) // 4 for event in profile.events()]
        for event in profile.events():
            sizes += [torch.Size(shape).numel() for shape in event.input_shapes if shape]
        return max(sizes)

    assert largest_op("reference") >= all_scores  # the look-out is awake
    assert largest_op("cpu") <= (3000 + 4 * 64) * 32  # both gradients


@pytest.mark.parametrize(
    "call", ["sk.swav_loss(z, c", "sk.prototype_distillation_loss(z, c, z[:2], c"]
)
def test_a_loss_from_features_never_holds_the_scores(call: str) -> None:
    code = f"""
import resource, torch, swav_kernels as sk
torch.set_num_threads(1)
def run(num_samples):
    z, c = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1).requires_grad_()
            for n in (8 * num_samples, 8192))
    z = z.view(8, num_samples, 16)
    {call}, backend="cpu").backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = run(8)
print((run(1024) - small) / 1024)
"""
    grown = float(run_python(code).stdout)  # MB; the scores are 256 MB, the codes of a crop 32
    assert grown < 64


# --- instruction sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_each_instruction_set_passes_the_tests_of_the_ops(name: str) -> None:
    if name not in available_sets():
        result = run_python("import swav_kernels._C", SWAV_KERNELS_CPU=name)
        assert f"SWAV_KERNELS_CPU is '{name}', but this processor has generic" in result.stderr
        return
    picked = run_python(
        "from swav_kernels import native; print(native.load().cpu.instruction_set())",
        SWAV_KERNELS_CPU=name,
    )
    assert picked.stdout.strip() == name
    if name == native.load().cpu.instruction_set():
        return  # the rest of this suite runs on it
    files = ["sinkhorn_options", "numerics_policy", "swapped_cross_entropy", "swav_loss"]
    files += ["prototype_scores", "swav_potentials", "swav_stats", "determinism"]
    files += ["prototype_distillation_loss"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-k", "cpu and not 50_runs and not large"]
        + [str(ROOT / f"tests/test_{file}.py") for file in files],
        capture_output=True,
        text=True,
        env={**os.environ, "SWAV_KERNELS_CPU": name},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_an_unknown_instruction_set_is_refused_with_the_choices() -> None:
    code = "import swav_kernels as sk; print(sk.available_backends()); print(sk.doctor())"
    result = run_python(code, SWAV_KERNELS_CPU="sse9")
    assert result.returncode == 0, result.stderr
    assert "'cpu'" not in result.stdout.splitlines()[0]
    assert "SWAV_KERNELS_CPU is 'sse9'" in result.stdout
    assert "generic" in result.stdout


def test_no_copy_of_a_kernel_can_stand_in_for_another_sets(tmp_path: Path) -> None:
    flags = ["-DSWAV_ISA=probe", *(["-mavx2", "-mfma"] if X86 else [])]
    for source in SOURCES:
        if source.name in ("dispatch.cpp", "scratch.cpp"):
            continue  # compiled once, for any processor
        target = tmp_path / f"{source.stem}.o"
        subprocess.run(["g++", *CPU_FLAGS, "-fPIC", *flags, "-c", source, "-o", target], check=True)
        symbols = subprocess.run(
            ["nm", "--demangle", target], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        shared = "cross_entropy" if source.stem == "cross_entropy" else "add_"  # by two losses
        assert any(f"swav::cpu::probe::{shared}" in line and " T " in line for line in symbols)
        weak = [line for line in symbols if line.split()[-2] in "WVu" and "DW.ref" not in line]
        assert not weak, weak
        ours = [line for line in symbols if " T " in line and "::probe::" not in line]
        assert not ours, ours


@pytest.mark.needs("aarch64-linux-gnu-g++")
def test_the_generic_build_compiles_for_arm(tmp_path: Path) -> None:
    for source in SOURCES:
        flags = ["-DSWAV_ISA=generic", "-O2", "-c", source, "-o", tmp_path / "arm.o"]
        subprocess.run(["aarch64-linux-gnu-g++", *CPU_FLAGS, *flags], check=True)


# --- without it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("sys.modules['swav_kernels._C'] = None", "swav_kernels._C"),
        (
            "import types; fake = types.ModuleType('swav_kernels._C'); fake.__version__ = '0.0.1'; "
            "sys.modules['swav_kernels._C'] = fake",
            "the compiled module is of version 0.0.1",
        ),
    ],
)
def test_without_the_compiled_module_the_reference_runs_and_doctor_says_why(
    how: str, reason: str
) -> None:
    result = run_python(
        f"import sys; {how}\n"
        "import torch, swav_kernels as sk\n"
        "assert 'cpu' not in sk.available_backends()\n"
        "assert sk.sinkhorn(torch.eye(3)).argmax(1).tolist() == [0, 1, 2]\n"
        "report = sk.doctor()\n"
        "assert report.ok\n"
        "print(next(line for line in report.splitlines() if 'cpu ' in line))\n"
        "try:\n"
        "    sk.sinkhorn(torch.eye(3), backend='cpu')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(reason) == 2, result.stdout
    assert "no: " in result.stdout


def test_versions_agree() -> None:
    assert native.load().__version__ == sk.__version__
    assert dispatch.why_not("cpu") is None


def test_a_module_that_is_cut_off_anywhere_is_seen(tmp_path: Path) -> None:
    whole = Path(native.load().__file__).read_bytes()
    path = tmp_path / "_C.so"
    for size in (64, 4096, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert native.is_cut_off(str(path)), size
    for content in (whole, whole + b"signed", whole[:63], b"broken", b""):  # the loader's to judge
        path.write_bytes(content)
        assert not native.is_cut_off(str(path))
