"""What the interpreter must be told, and a check that programs do not depend on each other.

Interpreted programs run one after another, so a race passes unseen. Here every launch runs twice:
in the program order, and in reverse from the same memory. Outputs are NaN before both, for
deterministic mode fills `torch.empty`, so the bits agree only if every element is written by one
program and nothing is read that another program writes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter


class OrderError(AssertionError):
    """The results of a launch depend on the order of its programs."""


launched_grids: dict[str, list[tuple[int, ...]]] = {}  # by the kernel's name
_is_reversed = False


def install() -> None:
    """Patch the interpreter of this process."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    np.seterr(all="ignore")  # kernels make NaN and inf on purpose, as the hardware does
    builder = interpreter.InterpreterBuilder
    builder.set_grid_idx = _with_reversible_order(builder.set_grid_idx)
    # a fifth of the run's time, for indices that are far too small here to overflow
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    # patching triton.language again at every call of a function is half of the run's time: a launch
    # has done so for ours, and this does it for those of triton itself, such as tl.zeros
    interpreter._patch_lang(tl.zeros.fn)
    interpreter.InterpretedFunction.__call__ = lambda f, *args, **kw: f.rewrite()(*args, **kw)
    interpreter.GridExecutor.__call__ = _in_both_orders(interpreter.GridExecutor.__call__)


def _with_reversible_order(set_grid_idx: Any) -> Any:
    def patched(self: Any, *index: int) -> None:
        if _is_reversed:
            index = tuple(n - 1 - i for n, i in zip(self.grid_dim, index, strict=True))
        set_grid_idx(self, *index)

    return patched


def _in_both_orders(run_grid: Any) -> Any:
    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        global _is_reversed
        grid = self.grid(kwargs) if callable(self.grid) else self.grid
        launched_grids.setdefault(self.fn.__name__, []).append(tuple(grid))
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        before = [_bytes(tensor).clone() for tensor in tensors]
        run_grid(self, *args, **kwargs)
        forward = [_bytes(tensor).clone() for tensor in tensors]
        for tensor, data in zip(tensors, before, strict=True):
            _bytes(tensor).copy_(data)
        _is_reversed = True
        try:
            run_grid(self, *args, **kwargs)
        finally:
            _is_reversed = False
        for tensor, data in zip(tensors, forward, strict=True):
            if not torch.equal(_bytes(tensor), data):
                raise OrderError(
                    f"{self.fn.__name__} over {grid} programs: the order changes a tensor "
                    f"{list(tensor.shape)}"
                )

    return patched


def _bytes(tensor: Tensor) -> Tensor:
    """All memory of a tensor's storage, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
