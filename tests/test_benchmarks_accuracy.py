"""The accuracy report: it sees an error that is there, and says NaN where the formulas give one."""

import json
from pathlib import Path

import pytest
import torch

import swav_kernels as sk
from benchmarks import accuracy


def test_the_report_of_the_sinkhorn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("figures.json", "page.md")]
    options = ["--quick", "--op", "sinkhorn", "--json", str(paths[0]), "--markdown", str(paths[1])]
    assert accuracy.main(options) == 0
    rows = json.loads(paths[0].read_text(), parse_constant=pytest.fail)["results"]
    assert len(rows) == len(accuracy.EPSILONS["sinkhorn"]) * len(accuracy.DTYPES)
    for row in rows:
        for name in ("reference", "cpu"):
            assert 0 < row["errors"][name] <= row["bound"]
    # exp(s / epsilon) overflows in float32, where ours still has its digits
    sharp = next(row for row in rows if row["epsilon"] == 0.002 and row["dtype"] == "float32")
    assert sharp["errors"]["official"] is None
    page = paths[1].read_text()
    assert page in capsys.readouterr().out
    (line,) = (line for line in page.splitlines() if line.startswith("| 64x300 | float32 | 0.002 "))
    assert line.endswith(" NaN |")
    assert f"{sharp['errors']['cpu']:.1e}" in line


def test_an_error_is_reported_at_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sk.swapped_cross_entropy

    def wrong(scores: torch.Tensor, *args: object, **keywords: object) -> torch.Tensor:
        loss = right(scores, *args, **keywords)
        return loss + 0.01 + (loss - loss.detach()) * 0.02  # the value by 0.01, the gradient by 2 %

    monkeypatch.setattr(sk, "swapped_cross_entropy", wrong)
    rows = accuracy.measure("swapped_cross_entropy", torch.device("cpu"), True)
    errors = {row["output"]: row["errors"] for row in rows if row["dtype"] == "float32"}
    assert errors["loss"]["cpu"] == pytest.approx(0.01, rel=1e-3)
    assert errors["d_scores"]["cpu"] == pytest.approx(0.02, rel=1e-3)
    assert errors["loss"]["official"] < 1e-6
