"""Which backend runs: argument, context, environment, auto; what is refused, and why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import swav_kernels as sk
from swav_kernels import dispatch

CPU = torch.device("cpu")
HAS_CPU_KERNELS = "cpu" in sk.available_backends()


def choose(requested=None, op="sinkhorn", device=CPU, dtype=torch.float32):
    return dispatch.choose_backend(op, device, dtype, requested)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)


def test_auto_takes_the_compiled_kernels_for_cpu_tensors():
    assert choose() == choose("auto") == ("cpu" if HAS_CPU_KERNELS else "reference")


@pytest.mark.parametrize("op", dispatch.OPS)
def test_auto_never_fails(op):
    for device in ("cpu", "meta", "cuda", "mps", "xpu"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert choose(op=op, device=torch.device(device), dtype=dtype) in dispatch.BACKENDS


def test_meta_tensors_run_the_reference():
    assert sk.sinkhorn(torch.empty(4, 3, device="meta")).shape == (4, 3)


def test_argument_beats_context_beats_environment(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    assert choose() == "reference"
    with sk.use_backend("auto"):
        assert choose() == ("cpu" if HAS_CPU_KERNELS else "reference")
        with sk.use_backend("reference"):
            assert choose() == "reference"
            assert choose("auto") == ("cpu" if HAS_CPU_KERNELS else "reference")
    assert choose() == "reference"


def test_context_is_left_after_an_error():
    with pytest.raises(RuntimeError), sk.use_backend("reference"):
        raise RuntimeError
    assert choose() == choose("auto")


@pytest.mark.parametrize("name", ["tritn", "CPU", "", "gpu", 3])
def test_unknown_names_are_refused_everywhere(name, monkeypatch):
    with pytest.raises(ValueError, match="unknown backend"):
        choose(name)
    with pytest.raises(ValueError, match="use_backend: .*unknown backend"), sk.use_backend(name):
        pass
    if name:  # an empty variable is an unset one
        monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, str(name))
        with pytest.raises(ValueError, match=f"{dispatch.ENVIRONMENT_VARIABLE} names the unknown"):
            choose()


def test_the_nearest_name_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        choose("tritn")


def test_an_explicit_backend_is_honoured_or_refused_with_the_reason(monkeypatch):
    with pytest.raises(ValueError, match="swav_loss: backend 'cuda' cannot run here: .*sinkhorn"):
        choose("cuda", op="swav_loss")
    with pytest.raises(ValueError, match="sinkhorn: backend 'cpu' cannot run here"):
        choose("cpu", device=torch.device("cuda"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        choose("triton")


def test_triton_refuses_float64_and_cpu_tensors_on_a_gpu_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="float64 is not supported"):
        choose("triton", device=torch.device("cuda"), dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot run on cpu tensors: set TRITON_INTERPRET=1"):
        choose("triton")
    assert choose(device=torch.device("cuda")) == "triton"
    assert choose(device=torch.device("cuda"), dtype=torch.float64) == "reference"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('of another torch')", "RuntimeError: of another torch"),
        ("", "triton.language"),
    ],
)
def test_a_triton_that_cannot_be_imported_is_a_reason_and_no_error_of_auto(
    code: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text(code)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, swav_kernels as sk\n"
        "from swav_kernels import dispatch\n"
        "torch.cuda.is_available = lambda: True\n"
        "reason = dispatch.why_not('triton')\n"
        "assert 'triton cannot be imported' in reason, reason\n"
        "print(reason)\n"
        "gpu = torch.device('cuda')\n"
        "assert dispatch.choose_backend('sinkhorn', gpu, torch.float32, None) == 'reference'\n"
        "try:\n"
        "    dispatch.choose_backend('sinkhorn', gpu, torch.float32, 'triton')\n"
        "except ValueError as error:\n"
        "    assert reason in str(error)\n"
        "else:\n"
        "    raise AssertionError('an explicit choice must be refused')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert said in result.stdout


def test_a_compiled_module_that_raises_anything_is_a_reason(monkeypatch):
    def load():
        raise SystemError("initialization of _C failed")

    monkeypatch.setattr("swav_kernels.native.load", load)
    dispatch._native_missing.cache_clear()
    try:
        assert dispatch.why_not("cpu") == "SystemError: initialization of _C failed"
        assert choose() == "reference"
    finally:
        dispatch._native_missing.cache_clear()


def test_doctor_tests_every_op_of_every_backend():
    report = sk.doctor()
    assert report.ok
    for name in dispatch.BACKENDS:
        assert f"backend {name}" in report
    for name in set(sk.available_backends()) - {"reference"}:
        for op in dispatch.BACKENDS[name].ops:
            assert f"  {op}" in report


def test_doctor_names_a_variable_that_cannot_be_followed(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "cqu")
    report = sk.doctor()
    assert not report.ok
    assert f"{dispatch.ENVIRONMENT_VARIABLE}=cqu: no such backend" in report


def test_doctor_finds_a_wrong_kernel(monkeypatch):
    if not HAS_CPU_KERNELS:
        pytest.fail("the compiled module is missing: " + str(dispatch.why_not("cpu")))
    kernels = dispatch.kernels("swav_loss", "cpu")
    right = kernels.loss_and_gradients

    def wrong(*args):
        loss, *rest = right(*args)
        return loss + 1e-3, *rest

    monkeypatch.setattr(kernels, "loss_and_gradients", wrong)
    report = sk.doctor()
    assert not report.ok
    assert "FAILED" in report
