"""The suite's own arithmetic: its oracles and baselines, its timer, its memory, its pages."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from compare import sinkhorn as literal_sinkhorn
from compare import sinkhorn_log_u, value_and_gradients
from compare import swapped_cross_entropy as literal_cross_entropy
from compare import swav_loss as literal_swav_loss

from benchmarks import cases, contenders, measure, memory, oracle, page, readme, table
from benchmarks.baselines import BASELINES
from benchmarks.case import Bound, Case, Shape
from benchmarks.limits import Limits

CPU = torch.device("cpu")
OPS = tuple(cases.SHAPES)


def small_case(op: str, gradient: bool = True) -> Case:
    """Sizes that are no multiple of anything."""
    sizes = (3, 33, 70) if len(cases.SHAPES[op][0].sizes) == 3 else (33, 70)
    return cases.make(op, Shape(sizes, "small", dim=24, gradient=gradient), CPU)


# --- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [200, 2**22])
def test_oracles_agree_with_autograd_on_the_literal_formulas(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(oracle, "CHUNK", chunk)  # 200: two rows a piece
    exact = Bound(largest=1e-12)
    case = small_case("swav_loss")
    inputs = [case.inputs[name].double() for name in ("features", "prototypes")]
    loss, gradients = value_and_gradients(literal_swav_loss, *inputs)
    assert case.oracle(case.inputs).share((loss, *gradients), (exact,) * 3) <= 1
    case = small_case("prototype_distillation_loss")
    z, c, t, e = (x.double() for x in case.inputs.values())
    q = literal_sinkhorn(t @ e.T)
    loss, gradients = value_and_gradients(
        lambda z, c: -(q * torch.log_softmax(z @ c.T / 0.1, 1)).sum(1).mean(), z, c
    )
    assert case.oracle(case.inputs).share((loss, *gradients), (exact,) * 3) <= 1
    case = small_case("swapped_cross_entropy")
    codes = case.inputs["codes"].double()
    loss, gradients = value_and_gradients(
        lambda s: literal_cross_entropy(s, codes), case.inputs["scores"].double()
    )
    assert case.oracle(case.inputs).share((loss, *gradients), (exact,) * 2) <= 1
    case = small_case("sinkhorn")
    scores = case.inputs["scores"].double()
    f = sinkhorn_log_u(scores)
    share = case.oracle(case.inputs).share
    assert share((f + 3,), (exact,)) <= 1  # a constant means nothing
    assert share((torch.softmax(scores / 0.05 + f, 1),), (exact,)) <= 1
    assert share((f + torch.linspace(0, 1e-9, len(f)),), (exact,)) > 1


def test_of_a_large_matrix_rows_all_over_it_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "MOST_COMPARED", 8 * 70)
    case = small_case("sinkhorn")
    codes = case.variants[0].prepare(case.inputs, "reference")()[0]
    share = case.oracle(case.inputs).share
    assert share((codes,), case.variants[0].bounds) <= 1
    codes[30:] += 1e-3
    assert share((codes,), case.variants[0].bounds) > 1
    assert share((codes[:9],), case.variants[0].bounds) == torch.inf


def test_a_bound_is_broken_by_nan_and_by_another_shape() -> None:
    want = torch.tensor([1.0, -4.0], dtype=torch.float64)
    got = torch.tensor([1.5, -4.0])
    assert Bound(absolute=0.5).share(got, want) == 1
    assert Bound(relative=0.25).share(got, want) == 2
    assert Bound(largest=0.25).share(got, want) == 0.5
    assert Bound(largest=0.25).times(2).share(got, want) == 0.25
    assert Bound(absolute=1).share(got * torch.nan, want) == torch.inf
    assert Bound(absolute=1).share(got[:1], want) == torch.inf


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_every_baseline_computes_the_op(op: str, gradient: bool) -> None:
    case = small_case(op, gradient)
    judge = case.oracle(case.inputs)
    names = [n for n, b in BASELINES.items() if n != "compile" and b.why_not(CPU) is None]
    for contender in contenders.theirs(case, names):
        share = judge.share(contenders.ready(contender, case.inputs)(), contender.bounds)
        assert share <= 1, contender.name


@pytest.mark.parametrize("op", OPS)
def test_every_variant_computes_the_op(op: str) -> None:
    case = small_case(op)
    for contender in contenders.ours(case, contenders.default_backends(op, CPU)):
        call = contenders.ready(contender, case.inputs)
        assert case.oracle(case.inputs).share(call(), contender.bounds) <= 1
        assert case.oracle(case.inputs).share(call(), contender.bounds) <= 1  # and once more


# --- the timer ----------------------------------------------------------------------------------


def test_medians_spread_and_ratios_are_of_rounds() -> None:
    times = {"a": itertools.cycle([4.0, 8.0, 16.0, 32.0]), "b": itertools.cycle([1.0, 4.0])}
    taken = {"a": [], "b": []}
    order = []

    def sample(name: str) -> measure.Sample:
        taken[name].append(next(times[name]))
        order.append(name)
        return taken[name][-1], 0.5 * taken[name][-1]

    found = measure.compare(["a", "b"], sample, 0.0, ["a"])
    rounds = measure.MIN_ROUNDS
    assert found["a"].rounds == rounds == 5
    assert len(taken["a"]) == rounds + 1  # one of them warms up when there is no time
    assert taken["a"][1:] == [8, 16, 32, 4, 8]
    assert found["a"].wall_ms == 8
    assert found["a"].spread == (16 - 8) / 8
    assert found["a"].cpu_ms == 4
    assert found["a"].ratios == found["a"].cpu_ratios == {"a": 1}
    # b: 4 1 4 1 4, so a / b: 2 16 8 4 2
    assert found["b"].ratios == {"a": 4}
    assert measure.summary([{"a": (2.0, None)}] * 5, "a", ["a"]).cpu_ratios == {}
    assert order[2:6] == ["a", "b", "b", "a"]  # the order turns round


def test_short_calls_are_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # a microsecond each time the clock is read, however busy the machine
    monkeypatch.setattr(measure.time, "perf_counter", lambda: 1e-6 * next(ticks))
    calls = []
    sample = measure.cpu_sampler({"short": lambda: calls.append(1)})
    wall, cpu = sample("short")
    first = len(calls)
    assert first > 100
    assert 0 < wall < 1
    assert cpu is not None
    sample("short")
    assert first < len(calls) < 2 * first + 1


def test_limits_are_measured_once_and_shares_are_of_them() -> None:
    limits = Limits(CPU, copies={2**23: 1e9}, exps=1e9)
    contender = next(contenders.ours(cases.make("sinkhorn", Shape((512, 2048), ""), CPU), ["cpu"]))
    shares = limits.shares(contender, Shape((512, 2048), ""), 1000.0)
    assert shares == {"copy": 5 * 4 * 2**20 / 1e9, "exp": 2**20 / 1e9}
    assert limits.product(torch.float32, (64, 32, 16)) > 0
    assert limits.shares(contender, Shape((512, 2048), ""), 500.0)["copy"] == 2 * shares["copy"]
    assert list(limits.as_json()["product_gflop_s"]) == ["float32 64x32x16"]


# --- memory -------------------------------------------------------------------------------------


def test_peak_memory_of_a_known_allocation() -> None:
    size = 64 * 2**20

    def call() -> torch.Tensor:
        torch.ones(size // 4)  # gone before the next one
        return torch.ones(size // 8)

    # the kernel counts pages in lots
    assert 0.98 * size <= memory.peak_of(call) <= 1.1 * size


def test_peak_memory_in_a_fresh_process_counts_the_result() -> None:
    shape = Shape((1024, 2048), "small")  # codes of 8 MiB
    case = cases.make("sinkhorn", shape.tiny(), CPU)
    codes, reused, *_ = contenders.ours(case, ["cpu"])
    taken = memory.cpu_peak("sinkhorn", shape, codes)
    assert taken is not None
    assert 0.98 * 2**23 <= taken <= 10 * 2**20
    again = memory.cpu_peak("sinkhorn", shape, reused)
    assert again is not None
    assert again <= 2**20


# --- what is printed ----------------------------------------------------------------------------


def result() -> dict:
    """A result with a row of each kind."""
    timed = {"device": "cpu", "op": "sinkhorn", "shape": "256x3000", "group": "paper",
             "num_prototypes": 3000, "correct": True, "wall_ms": 2.0, "spread": 0.01, "cpu_ms": 2.0,
             "ratios": {"official/": 4.0}, "cpu_ratios": {"official/": 4.1},
             "shares": {"copy": 0.7, "exp": 0.2}, "flops": 10**7, "bytes": 10**7,
             "peak_bytes": 3_000_000}  # fmt: skip
    rows = [
        timed | {"name": "official", "variant": "", "is_ours": False},
        timed | {"name": "cpu", "variant": "codes", "is_ours": True},
        {**timed, "name": "cpu", "variant": "codes", "is_ours": True, "group": "sweep",
         "shape": "256x1024"},
        {"device": "cpu", "op": "sinkhorn", "shape": "256x3000", "name": "pot", "variant": "",
         "group": "paper", "is_ours": False, "not_run": "failed: " + "long " * 50},
    ]  # fmt: skip
    return {
        "machine": {"cpu": "A processor", "cores": 4, "threads": 1, "gpu": None, "allocator": "W"},
        "versions": {"torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "date": "2026-01-02",
        "interrupted": False,
        "limits": {"cpu": {"copy_gb_s": {"1024": 10.0}, "product_gflop_s": {"float32 1x1": 9.0}}},
        "results": rows,
    }


def test_the_readme_table_is_written_in_its_place_and_again_the_same() -> None:
    block = readme.figures([result()])
    assert (
        "| `sinkhorn` 256x3000, codes (cpu) | 2.000 | 4.00 | - | - | copy 70 % | 3.0 (3.0) |"
        in (block.splitlines())
    )
    assert "A processor, 1 of 4 cores, an allocator that keeps freed memory" in block
    text = f"# Title\n\n{readme.START}\n\n## Next\n"
    once = readme.insert(text, block)
    assert once.startswith(f"# Title\n\n{readme.START}\n## Figures")
    assert once.endswith(f"\n{readme.END}\n\n## Next\n")
    assert readme.insert(once, block) == once
    assert readme.insert(once, "other") == readme.insert(text, "other")
    with pytest.raises(ValueError, match="marker"):
        readme.insert("no marker", block)


def test_without_results_the_readme_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "README.md"
    path.write_text("as it is")
    assert readme.main(["--readme", str(path), "--results", str(tmp_path)]) == 2
    assert path.read_text() == "as it is"
    assert "no results" in capsys.readouterr().out


def test_the_table_fits_120_columns() -> None:
    rows = result()["results"]
    lines = [*table.heading(rows[0]).splitlines(), *map(table.line, rows)]
    gpu = copy.deepcopy(rows[0]) | {"device": "cuda", "cpu_ms": None, "graph_wall_ms": 1234.5}
    gpu["graph_ratios"] = {"official/": 12345.67}
    lines += [*table.heading(gpu).splitlines(), table.line(gpu)]
    assert max(map(len, lines)) <= table.WIDTH
    assert "1234.5" in lines[-1]


def test_the_page_has_every_figure_and_its_pictures(tmp_path: Path) -> None:
    path = page.write(result(), tmp_path / "page")
    text = path.read_text()
    for name in ("sinkhorn_cpu_bars.png", "sinkhorn_cpu_sweep.png", "roofline_cpu.png"):
        assert f"({name})" in text
        assert (path.parent / name).stat().st_size > 1000
    assert text.count("| cpu codes | 2.000 |") == 2
    assert "not run: failed" in text
