"""Rules about the prototypes: their bias, and the length of what they are compared with."""

import ast
import re
from collections.abc import Iterator, Sequence

from swav_trainer.lint.files import Module
from swav_trainer.lint.rules import Finding
from swav_trainer.lint.syntax import calls, constant, functions, identifiers, name_of

PROTOTYPES = re.compile(r"prototypes|^_?prototype(_?(layer|head|\d+))?$", re.IGNORECASE)
# not torchvision's Normalize, which is of pixels, nor the norm layers of a network
NORMALISES = re.compile(r"normali[sz]e(?!r)|l2_?norm|vector_norm|weight_norm|cosine|^norm$", re.I)
PIXELS = {"Normalize"}


def findings(modules: Sequence[Module]) -> Iterator[Finding]:
    """Findings about layers named prototypes; lengths only where there is a Sinkhorn."""
    layers = [(module, *layer) for module in modules for layer in _layers(module.tree)]
    for module, layer, _, is_biased in layers:
        if is_biased:
            yield Finding(module.path, layer.lineno, "biased-prototypes")
    if not any("sinkhorn" in name.lower() for m in modules for name in identifiers(m.tree)):
        return
    if not any(_normalises_prototypes(module.tree) for module in modules):
        for module, layer, _, _ in layers:
            yield Finding(module.path, layer.lineno, "not-normalised")
    names = {name for _, _, name, _ in layers}
    for module in modules:
        lines = sorted(_scores_of_own_features(module.tree, names))
        if lines and not any(
            _normalises_features(other.tree)
            for other in modules
            if other is module or module.is_related(other)
        ):
            yield Finding(module.path, lines[0], "not-normalised")


def _layers(tree: ast.Module) -> Iterator[tuple[ast.Call, str, bool]]:
    """Each nn.Linear under the name of prototypes: the call, that name, whether it has a bias."""
    for node in ast.walk(tree):
        named: list[tuple[str, ast.AST]] = []
        if isinstance(node, ast.Assign):
            named = [(name_of(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            named = [(name_of(node.target), node.value)]
        elif isinstance(node, ast.Call):  # add_module("prototypes" + str(i), nn.Linear(...))
            texts = [
                str(constant(part)) for argument in node.args for part in ast.walk(argument)
                if isinstance(constant(part), str)
            ]  # fmt: skip
            named = [(text, argument) for argument in node.args[1:] for text in texts]
        for name, value in named:
            call = _linear(value)
            if call is not None and PROTOTYPES.search(name):
                yield call, name, _is_biased(call)


def _linear(value: ast.AST) -> ast.Call | None:
    """nn.Linear(...) itself, or what wraps it alone, such as weight_norm(nn.Linear(...))."""
    if not isinstance(value, ast.Call):
        return None
    if name_of(value.func) == "Linear":
        return value
    return _linear(value.args[0]) if value.args and name_of(value.func) != "Sequential" else None


def _is_biased(linear: ast.Call) -> bool:
    """Whether it surely has a bias: by default, or by True."""
    given = [keyword.value for keyword in linear.keywords if keyword.arg in ("bias", None)]
    given += linear.args[2:3]
    return not given or constant(given[0]) is True


def _scores(call: ast.Call) -> str:
    """The name of the layer that a call compares features with: self.prototypes(x)."""
    name = name_of(call.func)
    return name if call.args and PROTOTYPES.search(name) and not _normalises(call) else ""


def _scores_of_own_features(tree: ast.Module, names: set[str]) -> Iterator[int]:
    """Lines of scores, except of an argument as it came: its length is the caller's matter."""
    for function in functions(tree):
        given = {argument.arg for argument in (*function.args.posonlyargs, *function.args.args)}
        stores = [
            (node.id, node.lineno)
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        for call in calls(function):
            made_here = {name for name, line in stores if line < call.lineno}
            if _scores(call) in names and name_of(call.args[0]) not in given - made_here:
                yield call.lineno


def _normalises(call: ast.Call) -> bool:
    return any(
        NORMALISES.search(name) and name not in PIXELS
        for name in (name_of(call.func), *(keyword.arg or "" for keyword in call.keywords))
    )


def _normalises_prototypes(tree: ast.Module) -> bool:
    return any(is_theirs for _, is_theirs in _normalisations(tree))


def _normalises_features(tree: ast.Module) -> bool:
    return any(not is_theirs for _, is_theirs in _normalisations(tree))


def _normalisations(tree: ast.Module) -> Iterator[tuple[ast.Call, bool]]:
    """Each call that normalises, and whether it is the prototypes that it normalises."""
    scopes: list[ast.AST] = [tree, *functions(tree)]
    theirs: set[int] = set()
    for scope in scopes:
        taken = {  # w = model.prototypes.weight.data.clone()
            name_of(target)
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and _takes_weights(node.value)
            for target in node.targets
        } - {""}
        for call in calls(scope):
            if _normalises(call) and (
                _takes_weights(call) or taken & identifiers(call) or _linear(call) is not None
            ):
                theirs.add(id(call))
    for call in calls(tree):
        if _normalises(call):
            yield call, id(call) in theirs


def _takes_weights(value: ast.AST) -> bool:
    """Whether prototypes are taken as they are, and not called for scores."""
    return any(PROTOTYPES.search(name) for name in identifiers(value)) and not any(
        _scores(call) for call in calls(value)
    )
