"""Checks of a tensor that the caller gives for the result."""

import torch
from torch import Tensor

from swav_kernels import checks, hidden


def check_out(op: str, out: Tensor | None, scores: Tensor, acc: torch.dtype) -> None:
    """Require memory of its own, or the scores' own, of their shape and of the codes' dtype."""
    if out is None:
        return
    checks.check_tensor(op, "out", out, "[N, K]", "[A, N, K]")
    check_out_form(op, out, scores, acc)
    if not out.is_contiguous():
        raise ValueError(
            f"{op}: out must be contiguous, got strides {out.stride()}; pass torch.empty_like(...)"
        )
    if out.requires_grad:
        raise ValueError(f"{op}: out must not require grad, codes carry none; pass out.detach()")
    if out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{op}: out was made in inference mode, and may be written there only; pass out.clone()"
        )
    if out.device.type != "meta" and not torch.compiler.is_compiling():
        what = hidden.derivatives(out) or hidden.numbers(out)
        if what:
            raise TypeError(f"{op}: out {what}; pass a plain tensor, torch.empty(...)")
    same = (
        out.data_ptr() == scores.data_ptr() and out.dtype == scores.dtype and scores.is_contiguous()
    )
    if not same and _overlap(out, scores):
        raise ValueError(
            f"{op}: out overlaps scores in part; pass scores itself or memory of its own"
        )


def check_out_form(op: str, out: Tensor, scores: Tensor, acc: torch.dtype) -> None:
    """Require what can be seen without memory: the shape of the scores and the codes' dtype."""
    checks.check_shape(op, "out", out, scores.shape, "the shape of scores")
    checks.check_same_device(op, out=out, scores=scores)
    if out.dtype != acc:
        raise ValueError(
            f"{op}: out must have dtype {acc}, got {out.dtype}; codes of these scores have it"
        )


def _overlap(first: Tensor, second: Tensor) -> bool:
    if first.numel() == 0 or second.numel() == 0:
        return False
    if first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return False
    spans = []
    for tensor in (first, second):
        last = sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        spans.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    (start, end), (other_start, other_end) = spans
    return start < other_end and other_start < end
