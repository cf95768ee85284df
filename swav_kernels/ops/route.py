"""Which way a call goes: to the kernels at once, or where torch must see it as one of its ops."""

from typing import Any

import torch
from torch import Tensor


def is_traced() -> bool:
    """True under torch.compile, torch.export and modes that record ops: `torch.ops.swav_kernels`.

    In eager mode the kernels are called directly, which costs the host less than half.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def is_indirect() -> bool:
    """True also inside the transforms of torch.func, for ops that have a rule for vmap."""
    return is_traced() or torch._C._are_functorch_transforms_active()


def detached(value: Any) -> Any:
    """A tensor without its gradient; anything else as it is, for the op to refuse."""
    return value.detach() if isinstance(value, Tensor) else value
