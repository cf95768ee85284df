"""One case from its inputs to its rows: check every contender, time the correct ones together."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import cases, contenders, machine, measure, memory
from benchmarks.case import ASSIGN, FLOAT, Call, Case, Contender, Oracle, Shape
from benchmarks.limits import Limits

Row = dict[str, Any]
# of the others' memory nothing would be learnt
MEMORY_OF = ("official", "compile", "plain", "official_bf16", "sdpa")
MOST_COPIES = 4  # of the inputs, taken in turn on a GPU
MOST_GRAPH_BYTES = 2**30  # every graph keeps memory of its own; a long kernel hides its launch


@dataclass(frozen=True)
class Setting:
    """How cases are run."""

    device: torch.device
    backends: list[str]  # those asked for; empty: all that can be timed
    baselines: list[str]
    seconds: float
    memory: bool


def run(op: str, shape: Shape, setting: Setting, limits: Limits) -> list[Row]:
    """Return a row for each contender: its figures, or why there are none."""
    device = setting.device
    about = {"device": device.type, "op": op, "shape": shape.name, "group": shape.group,
             "num_prototypes": shape.sizes[-1]}  # fmt: skip
    size = input_bytes(op, shape)
    reason = _does_not_fit(2 * size, device)  # and their results
    try:
        case = cases.make(op, shape, device) if reason is None else None
    except torch.OutOfMemoryError:
        reason = _needs(size, device)
    if reason is not None:
        return [{**about, "name": "inputs", "variant": "", "is_ours": False, "not_run": reason}]
    oracle = functools.cache(
        lambda dtype: case.oracle({name: x.to(dtype) for name, x in case.inputs.items()})
    )
    rows: list[Row] = []
    timed: dict[str, _Timed] = {}
    for contender, reason in _contenders(case, setting):
        row = {**about, "name": contender.name, "variant": contender.variant,
               "is_ours": contender.is_ours}  # fmt: skip
        rows.append(row)
        if reason is None:
            reason, call = _checked(case, contender, oracle, row, device)
        if reason is None:
            timed[contender.label] = _Timed(contender, call, row)
        else:
            row["not_run"] = reason
    _time(case, timed, setting)
    for one in timed.values():
        _add_shares_and_memory(case, one, setting, limits)
    return sorted(rows, key=lambda row: row["is_ours"])


def input_bytes(op: str, shape: Shape) -> int:
    """Size of the float32 inputs, of scores and codes where the op starts from them."""
    features = FLOAT * shape.dim * (shape.num_crops * shape.sizes[-2] + shape.sizes[-1])
    features *= 2 if op == "prototype_distillation_loss" else 1  # the teacher's too
    matrices = {"sinkhorn": 1, "swapped_cross_entropy": shape.num_crops + len(ASSIGN)}
    return features + matrices.get(op, 0) * shape.matrix_bytes


@dataclass(frozen=True)
class _Timed:
    contender: Contender
    call: Call
    row: Row


def _contenders(case: Case, setting: Setting) -> Iterator[tuple[Contender, str | None]]:
    """Yield all contenders, each with the reason why it cannot be timed, or None.

    Ours come first: what they hold is then taken when it is seen whether a baseline fits.
    """
    for backend in setting.backends or contenders.default_backends(case.op, setting.device):
        if backend == "reference" and case.shape.group == "sweep" and not setting.backends:
            continue  # it says what an op means, and takes long to say it at such sizes
        reason = contenders.why_cannot_time(case.op, backend, setting.device)
        for contender in contenders.ours(case, [backend]):
            yield contender, reason
            if reason is not None:
                break  # once for all variants
    for contender in contenders.theirs(case, setting.baselines):
        yield contender, None


def _checked(
    case: Case,
    contender: Contender,
    oracle: Callable[[torch.dtype], Oracle],
    row: Row,
    device: torch.device,
) -> tuple[str | None, Call]:
    """Return why a contender is not timed, or None; and its call."""
    reason = _does_not_fit(contender.extra_bytes, device)
    if reason is not None:
        return reason, tuple
    try:
        call = contenders.ready(contender, case.inputs)
        outputs = call()
        share = oracle(contender.dtype).share(outputs, contender.bounds)
    except (torch.OutOfMemoryError, MemoryError):
        torch.cuda.empty_cache()
        return _needs(contender.extra_bytes, device), tuple
    except Exception as error:  # whatever it is, the others go on
        row["correct"] = False
        return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", tuple
    row |= {"correct": share <= 1, "error_over_bound": share if math.isfinite(share) else None}
    if share <= 1:
        return None, call
    return f"WRONG: {share:.3g} times the error bound, so it is not timed", tuple


def _time(case: Case, timed: dict[str, _Timed], setting: Setting) -> None:
    """Time them together; if they do not fit together, without the largest of them."""
    while timed:
        try:
            if setting.device.type == "cuda":
                _time_on_gpu(case, timed, setting)
            else:
                sample = measure.cpu_sampler({label: one.call for label, one in timed.items()})
                _compare(timed, sample, setting.seconds)
            return
        except (torch.OutOfMemoryError, MemoryError):
            largest = timed.pop(max(timed, key=lambda x: timed[x].contender.extra_bytes))
            torch.cuda.empty_cache()
            largest.row["not_run"] = _needs(largest.contender.extra_bytes, setting.device)


def _time_on_gpu(case: Case, timed: dict[str, _Timed], setting: Setting) -> None:
    """Eager calls with the host's launches, then replays of their CUDA graphs without."""
    device = setting.device
    size = sum(x.numel() * x.element_size() for x in case.inputs.values())
    num_copies = max(1, min(MOST_COPIES, measure.FLUSH_BYTES // size))
    calls = {
        label: [one.call]
        + [contenders.ready(one.contender, case.inputs, copy=True) for _ in range(num_copies - 1)]
        for label, one in timed.items()
    }
    _compare(timed, measure.gpu_sampler(calls, device, launch_counts=True), setting.seconds)
    graphs = {}
    for label, one in timed.items():
        if one.contender.can_be_captured and one.contender.extra_bytes + size <= MOST_GRAPH_BYTES:
            try:
                graphs[label] = [measure.capture(call, device) for call in calls[label]]
            except RuntimeError as error:
                one.row["graph_not_run"] = (str(error).splitlines() or [""])[0]
    captured = {label: one for label, one in timed.items() if label in graphs}
    sample = measure.gpu_sampler(graphs, device, launch_counts=False)
    _compare(captured, sample, setting.seconds, "graph_")


def _compare(
    timed: dict[str, _Timed], sample: measure.Sampler, seconds: float, prefix: str = ""
) -> None:
    if not timed:
        return
    against = [label for label, one in timed.items() if not one.contender.is_ours]
    for label, timing in measure.compare(timed, sample, seconds, against).items():
        values = dataclasses.asdict(timing)
        timed[label].row.update({f"{prefix}{name}": value for name, value in values.items()})


def _add_shares_and_memory(case: Case, one: _Timed, setting: Setting, limits: Limits) -> None:
    contender, row = one.contender, one.row
    row |= dataclasses.asdict(contender.work)
    milliseconds = row.get("graph_wall_ms", row["wall_ms"])
    row["shares"] = limits.shares(contender, case.shape, milliseconds)
    if setting.memory and (contender.is_ours or contender.name in MEMORY_OF):
        row["peak_bytes"] = (
            memory.gpu_peak(one.call, setting.device)
            if setting.device.type == "cuda"
            else memory.cpu_peak(case.op, case.shape, contender)
        )


def _does_not_fit(num_bytes: int, device: torch.device) -> str | None:
    """Return that so much is not free, or None; a GPU is asked by trying."""
    if device.type == "cuda":
        return None
    return None if num_bytes <= machine.available_bytes(device) else _needs(num_bytes, device)


def _needs(num_bytes: int, device: torch.device) -> str:
    free = machine.available_bytes(device)
    return f"does not fit: it takes about {num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
