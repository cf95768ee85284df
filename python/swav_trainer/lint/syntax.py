"""Questions about expressions of array code."""

import ast
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef
Loop = ast.For | ast.While
NAMESPACES = {"torch", "np", "numpy", "jnp", "F", "functional"}
HALF_TYPES = {"float16", "half", "bfloat16"}


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name, "" for what has none: "sum" for torch.sum and Q.sum."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def functions(node: ast.AST) -> Iterator[Function]:
    """All functions and methods within a node."""
    return (child for child in ast.walk(node) if isinstance(child, Function))


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """All calls within a node."""
    return (child for child in ast.walk(node) if isinstance(child, ast.Call))


def identifiers(node: ast.AST) -> set[str]:
    """Names, attributes, keywords and defined names within a node."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, (ast.Name, ast.Attribute)):
            found.add(name_of(child))
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(child.name)
        elif isinstance(child, (ast.keyword, ast.arg)):
            found.add(child.arg or "")
    return found


def constant(node: ast.AST | None) -> object:
    """The value of a constant, -1 included; None for all else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = constant(node.operand)
        return -value if isinstance(value, int) else None
    return node.value if isinstance(node, ast.Constant) else None


def operand_and_axis(call: ast.Call) -> tuple[ast.AST, int] | None:
    """What a reduction along one axis reduces: (Q, 1) for Q.sum(1) and torch.sum(Q, dim=1)."""
    arguments = list(call.args)
    if isinstance(call.func, ast.Attribute) and name_of(call.func.value) not in NAMESPACES:
        operand: ast.AST = call.func.value
    elif arguments:
        operand = arguments.pop(0)
    else:
        return None
    axis = constant(arguments[0]) if arguments else None
    for keyword in call.keywords:
        if keyword.arg in ("dim", "axis"):
            axis = constant(keyword.value)
    return (operand, axis) if type(axis) is int else None


def axis_of(call: ast.Call) -> int | None:
    """The constant axis of a reduction, or None."""
    found = operand_and_axis(call)
    return found[1] if found else None


def subtracted(node: ast.AST) -> ast.expr | None:
    """M of x - m, x -= m and x.sub_(m); None for all else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return node.right
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Sub):
        return node.value
    if isinstance(node, ast.Call) and name_of(node.func) in ("sub", "sub_") and node.args:
        return node.args[-1]
    return None


def is_half_cast(call: ast.Call) -> bool:
    """Whether it is x.half(), x.bfloat16(), x.to(torch.float16) or has dtype=torch.float16."""
    name = name_of(call.func)
    if name in ("half", "bfloat16"):
        return isinstance(call.func, ast.Attribute) and not call.args
    given = [keyword.value for keyword in call.keywords if keyword.arg == "dtype"]
    if name in ("to", "type", "astype"):
        given += call.args
    return any(name_of(value) in HALF_TYPES for value in given)


def is_transposed(node: ast.AST, transposed: dict[str, bool]) -> bool:
    """Whether an expression has its axes swapped against the function's arguments."""
    if isinstance(node, ast.Name):
        return transposed.get(node.id, False)
    if isinstance(node, ast.Attribute):
        return is_transposed(node.value, transposed) != (node.attr in ("T", "mT"))
    if isinstance(node, ast.Subscript):
        return is_transposed(node.value, transposed)
    if isinstance(node, ast.BinOp):
        return is_transposed(node.left, transposed) or is_transposed(node.right, transposed)
    if isinstance(node, ast.Call):
        swaps = name_of(node.func) in ("t", "transpose", "swapaxes", "permute")
        inner: ast.AST | None = node.args[0] if node.args else None
        if isinstance(node.func, ast.Attribute) and name_of(node.func.value) not in NAMESPACES:
            inner = node.func.value
        return (inner is not None and is_transposed(inner, transposed)) != swaps
    return False
