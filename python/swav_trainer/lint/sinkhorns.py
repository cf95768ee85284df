"""Rules about the Sinkhorn: its sums over ranks and its precision; its shift is in `shifts`."""

import ast
import re
from collections.abc import Iterator, Sequence

from swav_trainer.lint import shifts
from swav_trainer.lint.files import Module
from swav_trainer.lint.rules import Finding
from swav_trainer.lint.syntax import (
    Function,
    Loop,
    axis_of,
    calls,
    functions,
    identifiers,
    is_half_cast,
    name_of,
    subtracted,
)

EXPONENTIALS = {"exp", "exp_", "logsumexp", "softmax"}
COLLECTIVE = re.compile(r"reduce|.gather", re.IGNORECASE)  # torch.gather is none
OF_RANKS = re.compile(r"dist|world|rank|gather|group|initial|gpu|ddp|parallel|sync", re.IGNORECASE)
RUNS_ON_RANKS = {"init_process_group", "DistributedDataParallel", "DDP"}


def findings(modules: Sequence[Module]) -> Iterator[Finding]:
    """Findings in all functions that are a Sinkhorn; a test's own is left to the test."""
    for module in modules:
        loops = [
            (function, loop)
            for function in functions(module.tree)
            if not function.name.startswith("test_") and (loop := sinkhorn_loop(function))
        ]
        for function, loop in loops:
            lines = {
                "row-maximum": shifts.row_maximum(function, loop),
                "half-exp": _half(function, loop),
            }
            yield from (
                Finding(module.path, line, rule) for rule, line in lines.items() if line is not None
            )
        local = [_local_sum(module, loop) for _, loop in loops]
        # beside one that reduces its sums, the other is meant for one process
        lines_of_sums = [line for line in local if line is not None]
        if len(lines_of_sums) == len(loops) > 0 and _is_shared(module, modules):
            yield from (Finding(module.path, line, "sums-per-rank") for line in lines_of_sums)


def _is_shared(module: Module, modules: Sequence[Module]) -> bool:
    """Whether several ranks run the code of a module, each on rows that nobody gathers."""
    if any(re.search(".gather", name_of(call.func), re.I) for call in calls(module.tree)):
        return False
    return _uses_distributed(module.tree) or any(
        RUNS_ON_RANKS & identifiers(other.tree)
        for other in modules
        if other is module or module.is_related(other)
    )


def sinkhorn_loop(function: Function) -> Loop | None:
    """The loop that divides a matrix by its sums along both axes, or None."""
    if "sinkhorn" not in function.name.lower() and not EXPONENTIALS & identifiers(function):
        return None
    sums: dict[str, set[int]] = {}  # axes of the sums that names stand for
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    sums.setdefault(target.id, set()).update(_axes(node.value, sums))
    for node in ast.walk(function):
        if isinstance(node, Loop):
            axes = set().union(*(_axes(part, sums) for part in _divisors(node)))
            if axes & {0, -2} and axes & {1, -1}:
                return node
    return None


def _axes(node: ast.AST, sums: dict[str, set[int]]) -> set[int]:
    found = (axis_of(call) for call in calls(node) if _is_sum(call))
    axes = {axis for axis in found if axis is not None}
    return axes.union(*(sums.get(name, set()) for name in identifiers(node)))


def _is_sum(call: ast.Call) -> bool:
    return "sum" in name_of(call.func) or name_of(call.func) == "normalize"


def _divisors(loop: Loop) -> Iterator[ast.AST]:
    """What is divided by, and in logarithms what is subtracted."""
    for node in ast.walk(loop):
        if isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Div):
            yield node.right if isinstance(node, ast.BinOp) else node.value
        elif isinstance(node, ast.Call) and name_of(node.func) in ("div", "div_", "normalize"):
            yield node
        elif (part := subtracted(node)) is not None and "logsumexp" in identifiers(part):
            yield part


def _uses_distributed(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            of = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            if any(f"{of}{alias.name}".startswith("torch.distributed") for alias in node.names):
                return True
    return False


def _local_sum(module: Module, loop: Loop) -> int | None:
    """The line of the loop's first sum, unless its sums are reduced whatever the data are."""
    reducing = {
        function.name
        for function in functions(module.tree)
        if any(_is_collective(call) for call in calls(function))
    }
    for call in _calls_on_every_rank(loop):
        if _is_collective(call) or name_of(call.func) in reducing:
            return None
    return min((call.lineno for call in calls(loop) if _is_sum(call)), default=loop.lineno)


def _is_collective(call: ast.Call) -> bool:
    """dist.all_reduce(x), all_gather(x), AllReduce.apply(x)."""
    owner = name_of(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    return bool(COLLECTIVE.search(name_of(call.func)) or COLLECTIVE.search(owner))


def _calls_on_every_rank(node: ast.AST) -> Iterator[ast.Call]:
    """Calls that depend on no condition, except one about ranks."""
    if isinstance(node, ast.If) and not any(OF_RANKS.search(x) for x in identifiers(node.test)):
        return
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _calls_on_every_rank(child)


def _half(function: Function, loop: Loop) -> int | None:
    """The line of a cast to half that the exponentials or the loop meet."""
    if not EXPONENTIALS & identifiers(function):
        return None
    widened = {
        id(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in ("float", "double")
    }
    lines = [
        call.lineno
        for call in calls(function)
        if is_half_cast(call) and id(call) not in widened and call.lineno <= (loop.end_lineno or 0)
    ]
    return min(lines, default=None)
