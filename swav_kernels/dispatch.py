"""Which backend runs an op, and why not another: the only place that asks for a device."""

import contextlib
import contextvars
import difflib
import functools
import importlib
import importlib.util
import os
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from swav_kernels import hidden

OPS = (
    "prototype_scores",
    "sinkhorn",
    "swapped_cross_entropy",
    "swav_loss",
    "prototype_distillation_loss",
)
ENVIRONMENT_VARIABLE = "SWAV_KERNELS_BACKEND"

_TRITON_ABSENT = "triton is not installed: pip install triton"

_preferred: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "swav_kernels_backend", default=None
)


@dataclass(frozen=True)
class Backend:
    """One row of the dispatch table."""

    package: str  # module <package>.<op> holds the kernels
    ops: tuple[str, ...]
    device_types: tuple[str, ...]  # empty: any
    missing: Callable[[], str | None]  # why it cannot run on this machine, or None
    refuses: Callable[[torch.device, torch.dtype], str | None]  # why not these tensors, or None


def _nothing_missing() -> str | None:
    return None


def _takes_everything(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


@functools.cache
def _native_missing() -> str | None:
    try:
        importlib.import_module("swav_kernels.native").load()
    except Exception as error:  # a damaged file may raise anything: a reason, never a failure
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


@functools.cache
def _cuda_missing() -> str | None:
    reason = _native_missing()
    if reason is None and not importlib.import_module("swav_kernels.native").cuda_is_built():
        reason = "the compiled module was built without CUDA: rebuild with nvcc and -DSWAV_CUDA=ON"
    # ROCm calls its devices "cuda" too
    has_gpu = torch.cuda.is_available() and torch.version.hip is None
    return reason or (None if has_gpu else "torch sees no CUDA device")


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_missing() -> str | None:
    if not (_interpreting() or torch.cuda.is_available() or _has_xpu()):
        if importlib.util.find_spec("triton") is None:
            return _TRITON_ABSENT
        return (
            "no GPU that torch sees: set TRITON_INTERPRET=1 to interpret the kernels on CPU tensors"
        )
    return _triton_is_broken()


@functools.cache
def _triton_is_broken() -> str | None:
    """Why its kernels cannot be imported; asked where they could run, for triton loads slowly."""
    try:
        for op in OPS:
            kernels(op, "triton")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return _TRITON_ABSENT
        broken: Exception = error
    except Exception as error:  # of another torch, or half installed: it may raise anything
        broken = error
    else:
        return None
    return f"triton cannot be imported ({_reason(broken)}): install the one that torch asks for"


def _has_xpu() -> bool:
    return hasattr(torch, "xpu") and torch.xpu.is_available()


def _triton_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype == torch.float64:
        return (
            "float64 is not supported there: use backend='reference' or 'cpu', or float32 tensors"
        )
    if device.type == "cpu" and not _interpreting():
        return "it cannot run on cpu tensors: set TRITON_INTERPRET=1 to interpret it"
    return None


BACKENDS = {
    "reference": Backend("swav_kernels.reference", OPS, (), _nothing_missing, _takes_everything),
    "cpu": Backend("swav_kernels.native", OPS, ("cpu",), _native_missing, _takes_everything),
    "triton": Backend(
        "swav_kernels.triton_kernels", OPS, ("cuda", "xpu", "cpu"), _triton_missing, _triton_refuses
    ),
    "cuda": Backend(
        "swav_kernels.native", ("sinkhorn",), ("cuda",), _cuda_missing, _takes_everything
    ),
}
# `auto` takes the first that can run; reference always can
_AUTO_ORDER = {"cpu": ("cpu", "reference")}
_AUTO_ORDER_OTHER = ("triton", "reference")


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can run on this machine, `"reference"` first.

    Example:
        >>> "reference" in available_backends()
        True
    """
    return tuple(name for name, backend in BACKENDS.items() if backend.missing() is None)


def why_not(
    name: str,
    op: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> str | None:
    """Return why a backend cannot run (the op on such tensors), or None if it can."""
    backend = BACKENDS[name]
    if op is not None and op not in backend.ops:
        return f"it has only {', '.join(backend.ops)}: use backend='triton' or 'reference'"
    reason = backend.missing()
    if reason is not None or device is None:
        return reason
    if backend.device_types and device.type not in backend.device_types:
        return (
            f"it cannot run on {device.type} tensors: move them to "
            f"{' or '.join(backend.device_types)}, or pass backend='auto'"
        )
    return backend.refuses(device, dtype)


def choose_backend(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    requested: str | None,
    caller: str | None = None,
    **tensors: Tensor | None,
) -> str:
    """Pick the backend: argument, then `use_backend`, then SWAV_KERNELS_BACKEND, then auto.

    `caller` is the public function to name in errors, where its kernels belong to another op. The
    tensors are those whose derivatives must be right: under transforms the reference gives them.

    Raises:
        ValueError: the name is unknown, or the named backend cannot run this op on such tensors.
    """
    source, name = "backend", requested
    if name is None:
        source, name = "use_backend()", _preferred.get()
    if name is None:
        source, name = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if not isinstance(name, str) or name not in BACKENDS:
        check_backend_name(caller or op, source, name)
    if tensors and hidden.derivatives_may_be_there():
        name = _that_follows_transforms(caller or op, name, tensors)
    if name == "auto":
        for name in _AUTO_ORDER.get(device.type, _AUTO_ORDER_OTHER):
            if why_not(name, op, device, dtype) is None:
                break
        return name
    reason = why_not(name, op, device, dtype)
    if reason is not None:
        raise ValueError(f"{caller or op}: backend '{name}' cannot run here: {reason}")
    return name


def _that_follows_transforms(op: str, name: str, tensors: dict[str, Tensor | None]) -> str:
    """The reference is plain PyTorch, so all that torch.func does to tensors passes through it."""
    for argument, tensor in tensors.items():
        what = "" if tensor is None else hidden.derivatives(tensor)
        if what and name not in ("auto", "reference"):
            raise ValueError(
                f"{op}: {argument} {what}, which the kernels of backend '{name}' cannot follow; "
                "pass backend='reference' or 'auto'"
            )
        if what:
            return "reference"
    return name


def check_backend_name(op: str, source: str, name: object) -> None:
    """Raise ValueError unless the name is a backend or "auto"."""
    known = ("auto", *BACKENDS)
    if isinstance(name, str) and name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ValueError(
        f"{op}: {source} names the unknown backend {reprlib.repr(name)}; "
        f"choose from {', '.join(known)}{hint}"
    )


@functools.cache
def kernels(op: str, backend: str) -> ModuleType:
    """Return the module of an op's kernels; imported at the first call, triton with it."""
    return importlib.import_module(f"{BACKENDS[backend].package}.{op}")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Prefer one backend inside a `with` block (an explicit `backend=` still wins).

    Args:
        name: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: the name is unknown, or the backend cannot run on this machine.

    Example:
        >>> with use_backend("reference"):
        ...     pass
    """
    check_backend_name("use_backend", "name", name)
    reason = why_not(name) if name != "auto" else None
    if reason is not None:
        raise ValueError(f"use_backend: backend '{name}' cannot run here: {reason}")
    token = _preferred.set(name)
    try:
        yield
    finally:
        _preferred.reset(token)
