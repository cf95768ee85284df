"""Checks of weights: the shares of prototypes, and how much a row counts."""

import torch
from torch import Tensor

from swav_kernels import checks


def check_prototype_weights(
    op: str,
    weights: object,
    num_prototypes: int,
    like_name: str,
    like: Tensor,
    acc: torch.dtype,
    backend: str,
) -> Tensor | None:
    """Require prototype_weights [K] beside `like`; returned in accumulate dtype."""
    if weights is None:
        return None
    tensor = checks.check_tensor(op, "prototype_weights", weights, "[K]")
    checks.check_shape(op, "prototype_weights", tensor, (num_prototypes,), "[K]")
    checks.check_same_device(op, **{like_name: like, "prototype_weights": tensor})
    checks.check_readable(op, backend, prototype_weights=tensor)
    return tensor.detach().to(acc).contiguous()


def check_sample_weights(
    op: str,
    weights: object,
    num_problems: int,
    num_rows: int,
    like_name: str,
    like: Tensor,
    acc: torch.dtype,
    backend: str,
) -> Tensor | None:
    """Require sample_weights [N] or [A, N] beside `like`; returned as [A, N], accumulate dtype."""
    if weights is None:
        return None
    tensor = checks.check_tensor(op, "sample_weights", weights, "[N]", "[A, N]")
    shape = (num_rows,) if tensor.dim() == 1 else (num_problems, num_rows)
    checks.check_shape(
        op, "sample_weights", tensor, shape, "[N]" if tensor.dim() == 1 else "[A, N]"
    )
    checks.check_same_device(op, **{like_name: like, "sample_weights": tensor})
    checks.check_readable(op, backend, sample_weights=tensor)
    return tensor.detach().to(acc).expand(num_problems, num_rows).contiguous()
