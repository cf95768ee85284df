"""The suite's whole-step and multi-crop programs, and its timing on a GPU played on a CPU."""

import dataclasses
import re
import time
from pathlib import Path

import pytest
import torch
from swav_trainer.settings import load_preset

from benchmarks import (
    accumulation,
    cases,
    contenders,
    host,
    loading,
    measure,
    multicrop,
    one_case,
    step,
)
from benchmarks.case import Shape

CPU = torch.device("cpu")


@pytest.fixture
def _small_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(
        load_preset("mnist5k"), batch_size=8, num_prototypes=10, width=4, crops="2x20+1x12"
    )
    monkeypatch.setattr(step, "recipe", lambda device: small)
    monkeypatch.setattr(step, "NUM_IMAGES", 16)


@pytest.mark.usefixtures("_small_recipe")
def test_a_step_in_parts_has_the_gradient_of_the_whole() -> None:
    config = step.recipe(CPU)
    torch.manual_seed(0)
    model = step.Model(config, 1).train()
    crops = next(step.batches(config, CPU))
    loss = step.losses(config, CPU)["ours"]
    features = model(crops).view(-1, config.batch_size, config.feature_dim)
    loss(features, model.prototypes.weight).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = {}

    class Update:
        def step(self) -> None:
            found.update({name: p.grad.clone() for name, p in model.named_parameters()})

        def zero_grad(self, set_to_none: bool) -> None:
            model.zero_grad(set_to_none=set_to_none)

    parts = step.Step(model, Update(), iter([crops]), config, CPU)(loss)
    assert list(parts) == list(step.PARTS)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_small_recipe")
def test_the_step_program_prints_every_loss(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert step.main(["--seconds", "0", "--json", str(tmp_path / "step.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small, batch 8, crops 2x20+1x12, 10 prototypes")
    assert [line[:20].strip() for line in lines[2:]] == ["official", "ours", "ours, bfloat16"]
    assert '"parts_ms"' in (tmp_path / "step.json").read_text()


def test_both_crop_pipelines_give_the_same_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multicrop, "NUM_IMAGES", 2)
    plain = dataclasses.replace(
        multicrop.recipe(), jitter=0.0, grey=0.0, blur=0.0, areas=((0.9, 0.9), (0.9, 0.9)),
    )  # fmt: skip
    monkeypatch.setattr(multicrop, "recipe", lambda: plain)
    path = tmp_path / "image.jpg"
    multicrop.write_jpeg(path)
    (ours,) = multicrop.trainer_pipeline(path)()
    theirs = multicrop.pillow_pipeline(path)()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype == torch.float32
        assert 0 <= other.min() < other.max() <= 1
        assert abs(mine.mean() - other.mean()) < 0.05  # most of the same picture
    assert [tuple(x.shape) for x in ours] == [(4, 3, 224, 224), (12, 3, 96, 96)]


def test_loaders_are_compared_in_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "NUM_IMAGES", 8)
    monkeypatch.setattr(loading, "BATCH", 4)
    monkeypatch.setattr(loading, "TURNS", 1)
    assert loading.main(["--workers", "1"]) == 0
    pattern = r"1 workers +[\d.]+ images/s, [\d.]+ cores busy, [\d.]+ images/s of a core"
    threads, processes = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"threads +{pattern}", threads)
    assert re.fullmatch(f"processes +{pattern}", processes)


class Event:
    """torch.cuda.Event on a CPU."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


def test_a_gpu_gets_copies_in_turn_and_graphs_beside_eager_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(measure, "FLUSH_BYTES", 2**20)
    captured = []

    def capture(call: measure.Call, device: torch.device) -> measure.Call:
        captured.append(call)
        if len(captured) > 5:
            raise RuntimeError("not permitted when stream is capturing\nmore")
        return call

    monkeypatch.setattr(measure, "capture", capture)
    case = cases.make("sinkhorn", Shape((32, 60), "small"), CPU)
    setting = one_case.Setting(CPU, ["cpu"], ["official"], 0.0, memory=False)
    timed = {}
    for contender in (*contenders.theirs(case, ["official"]), *contenders.ours(case, ["cpu"])):
        call = contenders.ready(contender, case.inputs)
        timed[contender.label] = one_case._Timed(contender, call, {})
    one_case._time_on_gpu(case, timed, setting)
    rows = [one.row for one in timed.values()]
    assert all(row["wall_ms"] > 0 and row["ratios"]["official/"] > 0 for row in rows)
    assert all(row["cpu_ms"] is None for row in rows)
    assert rows[0]["graph_wall_ms"] > 0
    # four copies of the first contender, and the second's second copy could not be captured
    assert rows[1]["graph_not_run"] == "not permitted when stream is capturing"
    assert "graph_wall_ms" not in rows[1]


def test_a_step_in_parts_takes_less_memory_than_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    recipe = accumulation.recipe
    small = {"num_prototypes": 10, "crops": "2x20+1x12"}
    monkeypatch.setattr(
        accumulation, "recipe", lambda *sizes: dataclasses.replace(recipe(*sizes), **small)
    )
    assert accumulation.main(["--batch", "32", "--effective-batch", "256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("parts of 32, steps of 256 images, whose features take 0.1 MB")
    rows = {line[:20].strip(): line[20:].split() for line in lines[2:]}
    assert list(rows) == ["one part", "the whole in parts", "the whole at once"]
    assert float(rows["the whole in parts"][0]) < 0.6 * float(rows["the whole at once"][0])
    assert len(rows["one part"]) == 1  # it is what the others are compared with
    with pytest.raises(SystemExit):
        accumulation.main(["--batch", "64", "--effective-batch", "64"])
    assert "--effective-batch must be more than --batch" in capsys.readouterr().err


def test_the_host_program_prints_calls_and_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "host.json"
    assert host.main(["--seconds", "0", "--processes", "1", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:22].strip() for line in lines[1:3]] == ["sinkhorn", "swav_loss, forward"]
    assert re.fullmatch(r"import swav_kernels, after torch: \d+ ms", lines[3])
    for line in lines[1:3]:
        ours, kernel, rest, official = map(float, line[22:].split())
        assert abs(ours - kernel - rest) < 0.2
        assert 0 < kernel < official
