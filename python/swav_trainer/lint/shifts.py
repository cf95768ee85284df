"""The rule about the shift of a Sinkhorn: which maximum is subtracted before its sums."""

import ast
from collections.abc import Iterator

from swav_trainer.lint.syntax import (
    Function,
    Loop,
    is_transposed,
    name_of,
    operand_and_axis,
    subtracted,
)

BLOCKS = (ast.If, ast.With, ast.Try, ast.For, ast.While, ast.FunctionDef, ast.AsyncFunctionDef)
PARTS = {"values", "data"}
RESHAPES = {"unsqueeze", "detach", "view", "reshape", "expand_as", "clone"}


def row_maximum(function: Function, loop: Loop) -> int | None:
    """The line before the loop that subtracts each sample's maximum, and never adds it again."""
    transposed: dict[str, bool] = {}  # names whose samples are columns
    maxima: set[str] = set()
    added = {
        name_of(side)
        for node in ast.walk(function)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        for side in (node.left, node.right)
    }
    for statement in _statements_before(function, loop):
        for node in ast.walk(statement):
            part = subtracted(node)
            if part is not None and _is_maximum(part, transposed, maxima - added):
                return part.lineno
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                # m, _ = x.max(1): the maximum comes first
                first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
                if isinstance(first, ast.Name):
                    if _is_maximum(statement.value, transposed, maxima):
                        maxima.add(first.id)
                    transposed[first.id] = is_transposed(statement.value, transposed)
    return None


def _is_maximum(node: ast.AST, transposed: dict[str, bool], maxima: set[str]) -> bool:
    """Whether it is the maximum over the prototypes of each sample, or a name for it."""
    node = _unwrapped(node)
    if isinstance(node, ast.Name):
        return node.id in maxima
    if not isinstance(node, ast.Call) or name_of(node.func) not in ("max", "amax"):
        return False
    found = operand_and_axis(node)
    if found is None:
        return False
    operand, axis = found
    return axis in ((0, -2) if is_transposed(operand, transposed) else (1, -1))


def _statements_before(function: Function, loop: Loop) -> Iterator[ast.stmt]:
    """Simple statements of a function in order, those of its blocks included, up to the loop."""
    statements = (node for node in ast.walk(function) if isinstance(node, ast.stmt))
    for statement in sorted(statements, key=lambda statement: statement.lineno):
        if not isinstance(statement, BLOCKS) and statement.lineno < loop.lineno:
            yield statement


def _unwrapped(node: ast.AST) -> ast.AST:
    """x.max(1) of x.max(1)[0], x.max(1).values, m[:, None] and m.unsqueeze(1)."""
    if isinstance(node, ast.Subscript):
        return _unwrapped(node.value)
    if isinstance(node, ast.Attribute):
        return _unwrapped(node.value) if node.attr in PARTS else node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _unwrapped(node.func.value) if node.func.attr in RESHAPES else node
    return node
