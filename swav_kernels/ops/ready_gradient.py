"""Gradients that the forward pass has computed already, at the price of their memory.

Gradients of these gradients come from the reference, which needs the inputs once more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef


def save(ctx: Any, op: str, inputs: Sequence[Tensor | TensorWeakRef], *gradients: Any) -> None:
    """Keep the gradients for `of`, and inputs; weak references hold no memory."""
    ctx.save_for_backward(*gradients)
    # hooks may hand out the same memory elsewhere, to move it to the host for example
    hooks = _private("_top_saved_tensors_default_hooks")
    ctx.owns_gradients = hooks is not None and hooks(True) is None
    ctx.op, ctx.inputs = op, inputs
    ctx.versions = [_version(x) for x in inputs if isinstance(x, Tensor)]


def of(
    ctx: Any,
    grad_output: Tensor,
    dtype: torch.dtype,
    again: Callable[..., tuple[Sequence[Tensor], Tensor]],
) -> list[Tensor | None]:
    """Return each gradient * grad_output; differentiable where a graph of it is wanted.

    `again` makes from the kept inputs what the gradients belong to, and the reference's loss of it.
    """
    if not torch.is_grad_enabled():
        return _scaled(ctx, grad_output, dtype)
    variables, loss = again(*_inputs(ctx))
    needed = ctx.needs_input_grad[: len(variables)]
    wanted = [x for x, needs in zip(variables, needed, strict=True) if needs]
    found = iter(torch.autograd.grad(loss, wanted, grad_output, create_graph=True))
    return [next(found).to(dtype) if needs else None for needs in needed]


def _scaled(ctx: Any, grad_output: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
    """The gradients in their own memory if no later backward needs it."""
    keeps_graph = _private("_get_current_graph_task_keep_graph")
    is_last = keeps_graph is not None and not keeps_graph()
    saved = ctx.saved_tensors
    if is_last:
        ctx.inputs = None
    is_last = is_last and ctx.owns_gradients and not _is_batched(grad_output)
    if is_last and grad_output.device.type == "cpu" and grad_output.item() == 1:
        # nothing scales the loss; on a GPU to read the number would wait for all that runs there
        return [None if x is None else x.to(dtype) for x in saved]
    return [
        None if x is None else (x.mul_(grad_output) if is_last else x * grad_output).to(dtype)
        for x in saved
    ]


def _inputs(ctx: Any) -> list[Tensor]:
    inputs = [x if isinstance(x, Tensor) else x() for x in ctx.inputs]
    if any(x is None for x in inputs):
        raise RuntimeError(
            f"{ctx.op}: a gradient of its gradient needs its inputs, which are gone; keep a name "
            "for them until then, or pass backend='reference'"
        )
    if ctx.versions and ctx.versions != [_version(x) for x in inputs]:
        raise RuntimeError(
            f"{ctx.op}: a gradient of its gradient needs its inputs, which were changed in place; "
            "change copies, or pass backend='reference'"
        )
    return inputs


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_batched(grad_output: Tensor) -> bool:
    """True for one of several at once: torch.autograd.grad(is_grads_batched=True) and vmap."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad_output) or (
        functorch.is_functorch_wrapped_tensor(grad_output)
    )


def _private(name: str) -> Any:
    return getattr(torch._C._autograd, name, None)
