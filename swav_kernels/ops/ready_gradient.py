"""Gradients that the forward pass has computed already, at the price of their memory."""

import torch
from torch import Tensor


def scaled(gradient: Tensor, grad_output: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient * grad_output, in the memory of `gradient` if no later backward needs it."""
    if _graph_is_kept():
        return (gradient * grad_output).to(dtype)
    # a loss that nothing scales; on a GPU to read the number would wait for all that runs there
    if gradient.device.type != "cpu" or grad_output.item() != 1:
        gradient = gradient.mul_(grad_output)
    return gradient.to(dtype)


def _graph_is_kept() -> bool:
    """Tell whether this backward pass was asked to leave its graph for another one."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())
