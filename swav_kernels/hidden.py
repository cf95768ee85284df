"""What a kernel does not see of a tensor: it reads memory, and torch may keep more elsewhere."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

FAR = 2**36  # no view of freed memory, whose address is its offset alone, lies so far from 0


def derivatives_may_be_there() -> bool:
    """True inside a transform of torch.func or a level of forward-mode derivatives."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def derivatives(tensor: Tensor) -> str:
    """Say what torch keeps beside a tensor that its results should have too, or nothing."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "is transformed by torch.func"
    if forward_ad._current_level >= 0 and _tangent(tensor) is not None:
        return "has a forward-mode tangent"
    return ""


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    return tangent


def numbers(tensor: Tensor) -> str:
    """Say why the address of a tensor does not lead to its numbers, or nothing where it does."""
    if tensor.is_neg():
        return "is a lazily negated view, whose memory holds the negative of it"
    if tensor.data_ptr() >= FAR:
        return ""
    try:  # the storage's own address: a view's is not 0 where the storage was freed
        address = tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a fake tensor
        address = 0
    if address or not tensor.numel():
        return ""
    return f"is a {type(tensor).__name__} without memory of its own that a kernel could read"
