"""What Triton's interpreter gets wrong, put right: bfloat16, and which way round products are."""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def correct() -> None:
    """Patch the interpreter of this process; kernels compiled for a GPU do not see it."""
    builder = interpreter.InterpreterBuilder
    builder.cast_impl = _with_rounded_bfloat16(builder.cast_impl)
    builder.create_dot = _product


def _widened(handle: Any) -> Any:
    """Float32 values of a bfloat16 operand, whose bit patterns would be multiplied."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    values = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(values, tl.float32)


def _product(self: Any, a: Any, b: Any, acc: Any, *_: Any) -> Any:
    """`acc + a b`, the product rounded once.

    A number of it then has the same bits in `a b` as in its transpose, and in blocks of any shape,
    which a library's float32 product does not promise: kernels form a score more than once.
    """
    a, b = (_widened(x).data.astype(np.float64) for x in (a, b))
    product = np.matmul(a, b).astype(acc.data.dtype)
    return interpreter.TensorHandle(product + acc.data, acc.dtype.scalar)


def _with_rounded_bfloat16(cast: Any) -> Any:
    def patched(self: Any, source: Any, dtype: Any) -> Any:
        """Round to the nearest even number, as hardware does; the interpreter cuts bits off."""
        if (source.dtype.scalar, dtype.scalar) == (tl.bfloat16, tl.float32):
            return _widened(source)
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, dtype)
        rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16)
        return interpreter.TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    return patched
