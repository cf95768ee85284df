"""How an op becomes one of torch's: schema, kernels, shapes of results, gradients, vmap.

The public functions call these ops where torch must see them (`ops/route.py`). A group goes by its
name and a backend by the caller's word: which backend runs is decided when the graph runs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from swav_kernels import checks

LIBRARY: Any = torch.library.Library("swav_kernels", "FRAGMENT")  # type: ignore[no-untyped-call]
Results = Tensor | tuple[Tensor, ...]
Rule = Callable[..., tuple[Any, Any]]


def define(
    schema: str,
    run: Callable[..., Results],
    shapes: Callable[..., Results],
    *,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    vmap: Rule | None = None,
) -> None:
    """Register `torch.ops.swav_kernels.<name>` for every device.

    Args:
        schema: name, arguments and results, as torch.library has them.
        run: the op, on tensors with memory.
        shapes: the same checks, and empty results, on tensors without.
        setup: keeps for the backward pass what it needs; None: the results carry no gradient.
        backward: the gradient of every argument.
        vmap: folds a batch into the op's own dimensions; None runs one after the other.
    """
    LIBRARY.define(schema)
    name = f"swav_kernels::{schema.partition('(')[0]}"
    LIBRARY.impl(name, checks.without_autocast(run), "CompositeExplicitAutograd")
    torch.library.register_fake(name, shapes, lib=LIBRARY)
    torch.library.register_autograd(
        name, backward or _no_gradient, setup_context=setup or _mark_constant, lib=LIBRARY
    )
    in_turn = functools.partial(one_after_the_other, name.partition("::")[2])
    torch.library.register_vmap(name, vmap or in_turn, lib=LIBRARY)


def _mark_constant(ctx: Any, inputs: Sequence[Any], output: Results) -> None:
    ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))
    ctx.num_inputs = len(inputs)


def _no_gradient(ctx: Any, *_: Any) -> tuple[None, ...]:
    return tuple(None for _ in range(ctx.num_inputs))


def keep_gradients(count: int, ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    """Setup of an op whose results are a loss and the gradients of its first `count` inputs."""
    ctx.save_for_backward(*output[1 : 1 + count])
    ctx.mark_non_differentiable(*output[1:])
    ctx.dtypes = [x.dtype for x in inputs[:count]]
    ctx.num_inputs = len(inputs)


def scale_gradients(op: str, ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Backward of such an op."""
    refuse_second_derivative(op)
    gradients: list[Tensor | None] = []
    for gradient, dtype, needed in zip(
        ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False
    ):
        if needed and gradient.dim() == 0:
            raise RuntimeError(
                f"torch.ops.swav_kernels.{op}: an input requires grad, but its need_ argument was "
                f"False; call swav_kernels.{op}, which sets it"
            )
        gradients.append((gradient * grad_loss).to(dtype) if needed else None)
    return *gradients, *(None,) * (ctx.num_inputs - len(gradients))


def refuse_second_derivative(op: str) -> None:
    """Raise where a backward pass is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"torch.ops.swav_kernels.{op}: no gradient of a gradient is implemented in a graph; "
            f"call swav_kernels.{op} in eager mode, outside of torch.compile and dispatch modes"
        )


def reference_gradients(
    loss_and_rest: Callable[..., tuple[Tensor, Any]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None], Any]:
    """The loss of the reference, the gradients of the needed inputs, and what came with the loss.

    An op runs below autograd: the guard lets the reference's own operations be recorded again.
    """
    leaves = [x.detach().requires_grad_(is_needed) for x, is_needed in zip(inputs, needed)]
    wanted = [x for x in leaves if x.requires_grad]
    with _above_autograd(), torch.enable_grad():
        loss, rest = loss_and_rest(*leaves)
        found = iter(torch.autograd.grad(loss, wanted) if wanted else ())
    return loss.detach(), [next(found) if x.requires_grad else None for x in leaves], rest


def _above_autograd() -> Any:
    """Undo what torch excludes while an op runs."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient in memory of its own, or a 0-dim tensor in the place of one not needed."""
    return like.new_zeros(()) if gradient is None else gradient.contiguous()


def batch_of(info: Any, tensor: Tensor | None, dim: int | None) -> Tensor | None:
    """The tensor with the batch in front, repeated where it has none."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def one_after_the_other(
    op: str, info: Any, in_dims: Sequence[int | None], *args: Any
) -> tuple[Any, Any]:
    """Rule of vmap that calls the op for each example."""
    function: Any = getattr(torch.ops.swav_kernels, op)
    results = [
        function(
            *(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))
        )
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(map(torch.stack, zip(*results, strict=True)))
    return stacked, (0,) * len(stacked)
