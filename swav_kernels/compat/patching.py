"""`patch`, `unpatch` and `patched`: swap adapters into packages that are installed."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from swav_kernels.checks import shown
from swav_kernels.compat.targets import TARGETS, Function, Target


@dataclass(frozen=True)
class _Swap:
    """A target that was found: the module or class that has it, what it is there and will be."""

    target: Target
    owner: ModuleType | type
    original: Function
    replacement: Function

    def do(self) -> None:
        """Put the replacement wherever the original is, and say so."""
        for place, name in self._places(self.original):
            setattr(place, name, self.replacement)
            holder = place.__name__
            if isinstance(place, type):
                holder = f"{place.__module__}.{holder}"
            print(f"swav_kernels: {holder}.{name} is replaced")

    def undo(self) -> None:
        """Put the original wherever the replacement is, also in modules imported since."""
        for place, name in self._places(self.replacement):
            setattr(place, name, self.original)

    def _places(self, function: Function) -> list[tuple[ModuleType | type, str]]:
        package = self.target.package
        owners = [self.owner] if isinstance(self.owner, type) else [
            module for path, module in sys.modules.items()
            if isinstance(module, ModuleType) and path.partition(".")[0] == package
        ]  # fmt: skip
        return [
            (owner, name) for owner in owners
            for name, value in list(vars(owner).items()) if value is function
        ]  # fmt: skip


_patched: dict[str, list[_Swap]] = {}


def patch(code_base: str) -> None:
    """Swap this project's functions into an installed code base, and print each that is replaced.

    Every module of the package that holds the function gets the new one; a name that other modules
    took from it before stays the old one, so patch first. Methods are swapped in their classes, for
    instances that exist too; but bolts' `SWAVLoss` takes its method as it is built, so patch before
    that (releases before 0.6: its `SwAV`). What a version of the package lacks is skipped.
    lightly's `SwaVLoss` stays, and calls the new Sinkhorn: `compat.lightly.SwaVLoss` is the fused
    one.

    Args:
        code_base: "lightly", "solo_learn", "vissl", "mmpretrain", "dinov2", "dinov3" or "bolts".

    Raises:
        ValueError: the name is unknown, the package is missing or cannot be imported, or a function
            has not the signature that was tested. Nothing is replaced then.

    Example:
        >>> patch("lightly")  # doctest: +SKIP
        swav_kernels: lightly.loss.swav_loss.sinkhorn is replaced
    """
    _patch("patch", code_base)


def _patch(op: str, code_base: str) -> None:
    _check_name(op, code_base)
    if code_base in _patched:
        print(f"swav_kernels: {code_base} is patched already")
        return
    swaps = [swap for target in TARGETS[code_base] if (swap := _find(op, code_base, target))]
    if not swaps:
        targets = TARGETS[code_base]
        raise ValueError(
            f"{op}: {code_base} cannot be patched: package {targets[0].package!r} is not "
            f"installed, or has none of {', '.join(target.path for target in targets)}"
        )
    _patched[code_base] = swaps  # all were found and checked before the first is replaced
    for swap in swaps:
        swap.do()


def unpatch(code_base: str | None = None) -> None:
    """Put back what `patch` replaced, in one code base or in all.

    Args:
        code_base: as in `patch`; None is all. One that is not patched stays as it is.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> unpatch()
    """
    if code_base is not None:
        _check_name("unpatch", code_base)
    for name in list(_patched) if code_base is None else [code_base]:
        for swap in _patched.pop(name, []):
            swap.undo()


@contextlib.contextmanager
def patched(code_base: str) -> Iterator[None]:
    """`patch` within a `with` block; a code base that was patched before it stays patched.

    Args:
        code_base: as in `patch`.

    Raises:
        ValueError: as `patch`.

    Example:
        >>> with patched("solo_learn"):  # doctest: +SKIP
        ...     trainer.fit(model)
    """
    _check_name("patched", code_base)
    was_patched = code_base in _patched
    _patch("patched", code_base)
    try:
        yield
    finally:
        if not was_patched:
            unpatch(code_base)


def _check_name(op: str, code_base: object) -> None:
    if not isinstance(code_base, str) or code_base not in TARGETS:
        raise ValueError(
            f"{op}: code_base names the unknown code base {shown(code_base)}; choose from "
            f"{', '.join(TARGETS)}, or import a function for a script from swav_kernels.compat"
        )


def _find(op: str, code_base: str, target: Target) -> _Swap | None:
    """Return what to swap, or None where this version of the package lacks it."""
    try:
        owner: Any = importlib.import_module(target.module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{target.module}.".startswith(
            f"{error.name}."
        ):
            return None
        raise ValueError(
            f"{op}: {code_base} cannot be patched: importing {target.module} failed with "
            f"{type(error).__name__}: {error}; import it by itself and mend that first"
        ) from error
    class_name, _, name = target.name.rpartition(".")
    if class_name:
        owner = getattr(owner, class_name, None)
    original = vars(owner).get(name) if owner is not None else None
    if original is None:
        return None
    tested = {_signature(function, positional=True): function for function in target.replacements}
    got = _signature(original)
    if got not in tested:
        raise ValueError(
            f"{op}: {code_base} cannot be patched: {target.path} has the signature {got}, and "
            f"{' or '.join(tested)} was tested; call the function of swav_kernels.compat yourself, "
            "or use a version of the package that has it"
        )
    return _Swap(target, owner, original, tested[got])


def _signature(function: Function, positional: bool = False) -> str:
    """Names and defaults; without what an adapter adds by keyword alone, if `positional`."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if not (positional and parameter.kind == inspect.Parameter.KEYWORD_ONLY)
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
