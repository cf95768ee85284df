"""Argument checks shared by the ops: one clear error each, before any kernel or collective."""

import functools
import math
import numbers
import reprlib
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from swav_kernels import hidden

MOST_ITERATIONS = 2**31 - 1  # an int of the kernels
SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # 1 / epsilon is a normal number in float32
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PRECISIONS = ("float32", "bfloat16")
NORM_EPS = 1e-12

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_autocast(op: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a public op in its own precision inside an autocast region: float32 sums, not half."""

    @functools.wraps(op)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        # the tensor that every op begins with, or the op says what it wants
        named = (x for x in kwargs.values() if isinstance(x, Tensor))
        first = args[0] if args else next(named, None)
        device_type = first.device.type if isinstance(first, Tensor) else "meta"
        if device_type == "meta" or not torch.is_autocast_enabled(device_type):
            return op(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return op(*args, **kwargs)

    return wrapped


def check_tensor(op: str, argument: str, value: object, *layouts: str) -> Tensor:
    """Require a floating tensor with one of the layouts, such as "[N, K]" or "[A, N, K]"."""
    if not isinstance(value, Tensor):
        wanted = " or ".join(layouts)
        raise TypeError(
            f"{op}: {argument} must be a torch.Tensor {wanted}, got {type(value).__name__}; "
            "wrap it with torch.as_tensor"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{op}: {argument} must have a floating dtype, got {value.dtype}; "
            "convert it with .float()"
        )
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {argument} must be float16, bfloat16, float32 or float64, got {value.dtype}; "
            "convert it with .to(torch.bfloat16)"
        )
    if value.layout != torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else value.layout
        fix = "pad it with .to_padded_tensor" if value.is_nested else "use .to_dense()"
        raise TypeError(f"{op}: {argument} must be a dense tensor, got {got}; {fix}")
    dims = _dims(layouts)
    if dims and value.dim() not in dims:
        wanted = " or ".join(layouts)
        raise ValueError(
            f"{op}: {argument} must have shape {wanted}, got {list(value.shape)}; "
            "reshape it with .reshape or .unsqueeze(0)"
        )
    if value.dim() == 0:
        wanted = " or ".join(layouts)
        raise ValueError(
            f"{op}: {argument} must have shape {wanted}, got a 0-dim tensor; use .reshape"
        )
    return value


@functools.cache
def _dims(layouts: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of dimensions that layouts allow; none said: any."""
    return () if layouts[0].startswith("[...") else tuple(x.count(",") + 1 for x in layouts)


def check_shape(op: str, argument: str, value: Tensor, wanted: Sequence[int], meaning: str) -> None:
    """Require an exact shape; `meaning` names its letters, such as "[A, K]"."""
    if list(value.shape) != list(wanted):
        raise ValueError(
            f"{op}: {argument} must have shape {meaning} = {list(wanted)}, "
            f"got {list(value.shape)}; the sizes must match the other arguments"
        )


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """Require that all given tensors live on one device."""
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        device = tensor.device
        if first is None:
            first_name, first = name, device
        elif device != first:
            raise ValueError(
                f"{op}: {name} is on {device} but {first_name} on {first}; "
                f"move it with .to('{first}')"
            )


def check_scale(op: str, argument: str, value: object) -> float:
    """Require epsilon or a temperature: a number that scores may be divided by."""
    number = check_number(op, argument, value)
    if not SMALLEST_SCALE <= number <= LARGEST_SCALE:  # false for NaN
        raise ValueError(
            f"{op}: {argument} must be a positive number from {SMALLEST_SCALE:g} to "
            f"{LARGEST_SCALE:g}, got {number:g}; "
            f"the paper's is {'0.1' if argument == 'temperature' else '0.05'}"
        )
    return number


def check_score_bound(op: str, value: object) -> float:
    """Require a promise that scores can keep."""
    number = check_number(op, "score_bound", value)
    if not 0 < number < math.inf:
        raise ValueError(
            f"{op}: score_bound must be a positive finite number, got {number:g}; "
            "for cosines it is 1.0, and None promises nothing"
        )
    return number


def check_number(op: str, argument: str, value: object) -> float:
    """Require a real number of any size."""
    # the common type first: asking numbers.Real costs more than a small kernel's share
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{op}: {argument} must be a number, got {type(value).__name__}; "
            "convert it with float() or .item()"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_flags(op: str, **flags: object) -> None:
    """Require True or False: anything else would be taken for True, a group or a string too."""
    for argument, value in flags.items():
        if value is not True and value is not False and not isinstance(value, np.bool_):
            raise TypeError(
                f"{op}: {argument} must be True or False, got {shown(value)}; "
                "convert it with bool()"
            )


def check_iterations(op: str, value: object, least: int, argument: str = "iterations") -> int:
    """Require an integer of at least `least`."""
    if type(value) is not int and (
        isinstance(value, bool) or not isinstance(value, numbers.Integral)
    ):
        raise TypeError(
            f"{op}: {argument} must be an integer, got {type(value).__name__}; the paper's is 3"
        )
    number = int(value)
    if not least <= number <= MOST_ITERATIONS:
        fix = "the paper's is 3" if least == 0 else "only sinkhorn() accepts 0; the paper's is 3"
        raise ValueError(
            f"{op}: {argument} must be at least {least} and below 2**31, got {value}; {fix}"
        )
    return number


def check_precision(op: str, precision: object) -> str:
    """Require a known working precision."""
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(
            f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {shown(precision)}; "
            "float32 is the default"
        )
    return precision


def shown(value: object) -> str:
    """What was got, on one line of a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return " ".join(reprlib.repr(value).split())


def check_assign(op: str, assign: object, num_crops: int) -> tuple[int, ...]:
    """Require distinct crop indices in range, and a second crop to predict from."""
    if num_crops < 2:
        raise ValueError(
            f"{op}: assign needs at least 2 crops (V >= 2), got {num_crops}; "
            "a crop predicts another's codes"
        )
    if type(assign) is tuple and list(map(type, assign)) == [int] * len(assign):
        crops = assign  # the common case, which the check below takes longer to see
    elif isinstance(assign, Sequence) and all(
        isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in assign
    ):
        crops = tuple(int(i) for i in assign)
    else:
        raise TypeError(
            f"{op}: assign must be a tuple of crop indices, got {shown(assign)}; "
            "the paper's is (0, 1)"
        )
    if not crops or len(set(crops)) != len(crops) or min(crops) < 0 or max(crops) >= num_crops:
        raise ValueError(
            f"{op}: assign must be distinct crop indices in 0..{num_crops - 1}, "
            f"got {shown(crops)}; the paper's is (0, 1)"
        )
    return crops


def check_readable(op: str, backend: str, **tensors: Tensor | None) -> None:
    """Require tensors that a kernel sees all of; the reference alone follows what torch adds."""
    if backend == "reference":
        return
    is_compiling = torch.compiler.is_compiling()  # then addresses are not asked for
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        if what := hidden.derivatives(tensor):
            raise ValueError(
                f"{op}: {argument} {what}, which the kernels of backend '{backend}' cannot follow; "
                "pass backend='reference'"
            )
        if not is_compiling and (what := hidden.numbers(tensor)):
            raise TypeError(
                f"{op}: {argument} {what}; pass a plain tensor (.to_local() of a DTensor, "
                ".resolve_neg(), .clone())"
            )


def check_not_empty(op: str, argument: str, size: int, letter: str) -> None:
    """Require at least one prototype or feature dimension."""
    if size < 1:
        raise ValueError(
            f"{op}: {argument} must have {letter} >= 1, got {letter} = 0; "
            "look where they were made or sliced"
        )


def accumulate_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any input is, else float32: sums never run in half."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the common floating dtype; each gradient still returns in its own input's dtype."""
    dtypes = [t.dtype for t in tensors]
    if dtypes.count(dtypes[0]) == len(dtypes):
        return tensors
    dtype = functools.reduce(torch.promote_types, dtypes)
    return tuple(t.to(dtype) for t in tensors)


def normalize_rows(features: Tensor) -> Tensor:
    """L2-normalise the last dimension in accumulate precision; a zero row gets a zero gradient."""
    features = features.to(accumulate_dtype(features))
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    # where squares overflow, the row comes down by a power of two first
    down = 2.0**-72 if features.dtype == torch.float32 else 2.0**-540
    features = features * torch.where(norm.detach() == math.inf, down, 1.0).to(features.dtype)
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(features), features / norm.clamp_min(NORM_EPS))
