"""Gradients that the forward pass has computed already, at the price of their memory."""

from typing import Any

import torch
from torch import Tensor


def save(ctx: Any, *gradients: Tensor | None) -> None:
    """Keep the gradients for `scaled`."""
    ctx.save_for_backward(*gradients)
    # hooks may hand out the same memory elsewhere, to move it to the host for example
    hooks = _private("_top_saved_tensors_default_hooks")
    ctx.owns_gradients = hooks is not None and hooks(True) is None


def scaled(ctx: Any, grad_output: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
    """Return each gradient * grad_output, in its own memory if no later backward needs it."""
    keeps_graph = _private("_get_current_graph_task_keep_graph")
    is_last = ctx.owns_gradients and keeps_graph is not None and not keeps_graph()
    is_last = is_last and not _is_batched(grad_output)
    if is_last and grad_output.device.type == "cpu" and grad_output.item() == 1:
        # nothing scales the loss; on a GPU to read the number would wait for all that runs there
        return [None if x is None else x.to(dtype) for x in ctx.saved_tensors]
    return [
        None if x is None else (x.mul_(grad_output) if is_last else x * grad_output).to(dtype)
        for x in ctx.saved_tensors
    ]


def _is_batched(grad_output: Tensor) -> bool:
    """True for one of several at once: torch.autograd.grad(is_grads_batched=True) and vmap."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad_output) or (
        functorch.is_functorch_wrapped_tensor(grad_output)
    )


def _private(name: str) -> Any:
    return getattr(torch._C._autograd, name, None)
