"""The suite on a machine that lacks things, with a kernel that errs, and cut short."""

import json
from pathlib import Path

import pytest
import torch

import swav_kernels as sk
from benchmarks import contenders, machine, one_case, run
from benchmarks.baselines import BASELINES

SINKHORN = ["--op", "sinkhorn", "--backend", "cpu", "--quick", "--seconds", "0.01"]


def rows(path: Path) -> dict[str, dict]:
    """Rows of the result, by contender."""
    return {f"{r['name']} {r['variant']}": r for r in json.loads(path.read_text())["results"]}


def test_figures_of_a_case_come_with_their_ratios_and_shares(tmp_path: Path) -> None:
    assert run.main([*SINKHORN, "--json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["commit"]
    assert result["date"]
    assert not result["interrupted"]
    for row in result["results"]:
        assert row["correct"]
        assert row["wall_ms"] > 0
        assert row["cpu_ms"] > 0
        assert row["ratios"]["official/"] > 0
        assert set(row["shares"]) == {"copy", "exp"}
    assert rows(tmp_path / "r.json")["official "]["ratios"]["official/"] == 1


def test_a_wrong_kernel_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = sk.sinkhorn
    monkeypatch.setattr(sk, "sinkhorn", lambda *args, **kwargs: right(*args, **kwargs) * 1.01)
    assert run.main([*SINKHORN, "--json", str(tmp_path / "r.json")]) == 1
    row = rows(tmp_path / "r.json")["cpu codes"]
    assert not row["correct"]
    assert "wall_ms" not in row
    assert "wall_ms" in rows(tmp_path / "r.json")["cpu potentials"]
    assert "WRONG" in capsys.readouterr().out


def test_a_kernel_that_fails_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(sk, "sinkhorn_potentials", fail)
    assert run.main([*SINKHORN, "--json", str(tmp_path / "r.json")]) == 1
    found = rows(tmp_path / "r.json")
    assert found["cpu potentials"]["not_run"] == "failed: RuntimeError: no such luck"
    assert "wall_ms" in found["cpu codes"]


@pytest.mark.parametrize("kept", [0, 1])
def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, kept: int
) -> None:
    cases = []

    def one(op: str, *args: object) -> list[one_case.Row]:
        if len(cases) == kept:
            raise KeyboardInterrupt
        cases.append(op)
        return [{"device": "cpu", "op": op, "shape": "1x1", "name": "cpu", "variant": "",
                 "is_ours": True, "not_run": "a test"}]  # fmt: skip

    monkeypatch.setattr(one_case, "run", one)
    path = tmp_path / "new" / "r.json"
    assert run.main(["--quick", "--json", str(path)]) == run.INTERRUPTED
    result = json.loads(path.read_text())
    assert result["interrupted"]
    assert len(result["results"]) == kept
    assert f"interrupted: {kept} results are kept in {path}" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine with no GPU")
def test_a_missing_device_is_said_and_the_rest_goes_on(capsys: pytest.CaptureFixture) -> None:
    assert run.main([*SINKHORN, "--device", "cuda"]) == 2
    assert run.main([*SINKHORN, "--device", "cuda", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("--device cuda was asked for, but torch sees no CUDA device") == 2
    assert "sinkhorn 256x3000, cpu" in out


def test_a_missing_baseline_or_backend_is_said_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--baselines", "flash_sinkhorn", "plain", "--json", str(tmp_path / "r.json")]
    assert run.main([*SINKHORN, *options, "--backend", "triton", "cpu"]) == 0
    found = rows(tmp_path / "r.json")
    assert "wall_ms" in found["plain "]
    assert found["triton codes"]["not_run"]
    assert "baseline flash_sinkhorn is left out: it runs on cuda only" in capsys.readouterr().out


def test_what_does_not_fit_is_said_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda device: 6_500_000)
    options = ["--baselines", "official", "pot", "plain", "--json", str(tmp_path / "r.json")]
    monkeypatch.setitem(BASELINES, "pot", BASELINES["plain"])  # wherever POT is not installed
    monkeypatch.setattr(one_case, "input_bytes", lambda op, shape: 1)
    run.main([*SINKHORN, *options])
    found = rows(tmp_path / "r.json")
    assert found["official "]["correct"]
    monkeypatch.setattr(machine, "available_bytes", lambda device: 4_000_000)
    run.main([*SINKHORN, *options])
    found = rows(tmp_path / "r.json")
    expected = "does not fit: it takes about 0.00614 GB, 0.004 GB are free"
    assert found["official "]["not_run"] == expected
    assert "wall_ms" in found["plain "]


def test_an_out_of_memory_error_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail_later(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:  # it fits alone, and not beside the others
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(*args, **kwargs)

    right = sk.sinkhorn
    monkeypatch.setattr(sk, "sinkhorn", fail_later)
    assert run.main([*SINKHORN, "--json", str(tmp_path / "r.json")]) == 0
    found = rows(tmp_path / "r.json")
    assert "does not fit" in found["cpu codes, out="]["not_run"]
    assert "wall_ms" in found["cpu potentials"]


def test_a_checkout_without_the_compiled_module_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(run, "why_not", lambda name: "No module named 'swav_kernels._C'")
    assert run.main(["--quick"]) == 2
    assert "pip install -e" in capsys.readouterr().out


def test_interpreted_kernels_are_never_timed() -> None:
    reason = contenders.why_cannot_time("sinkhorn", "triton", torch.device("cpu"))
    assert reason is not None
    assert "GPU" in reason
