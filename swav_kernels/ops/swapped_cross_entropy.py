"""Public op `swapped_cross_entropy`: every crop predicts the codes of the other assign crops."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from swav_kernels import checks, dispatch
from swav_kernels.ops import ready_gradient, route
from swav_kernels.reference import swapped_cross_entropy as reference

OP = "swapped_cross_entropy"
DEFAULT_TEMPERATURE = 0.1  # Caron et al. 2020, appendix A
DEFAULT_ASSIGN = (0, 1)  # the two large crops


@checks.without_autocast
def swapped_cross_entropy(
    scores: Tensor,
    codes: Tensor,
    temperature: float = DEFAULT_TEMPERATURE,
    *,
    assign: Sequence[int] = DEFAULT_ASSIGN,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of every crop's prediction with the codes of every other assign crop.

    `loss = mean over a, v != assign[a], b of -(codes[a, b] * log_p[v, b]).sum()` with
    `log_p = log_softmax(scores / temperature, -1)`.

    Args:
        scores: [V, B, K], V >= 2 crops of B samples; -inf masks a prototype.
        codes: [A, B, K], the codes of crops `assign`. Rows may sum to anything. They carry no
            gradient: codes that require it are detached.
        temperature: of the prediction's softmax, from 1e-30 to 1e30.
        assign: the A distinct crop indices whose codes are given.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        The loss, a float32 scalar (float64 for float64 inputs); 0 for an empty batch.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes, devices or assign do not fit, or the backend cannot run here.

    Example:
        >>> scores = torch.zeros(2, 1, 4)
        >>> codes = torch.full((2, 1, 4), 0.25)
        >>> round(swapped_cross_entropy(scores, codes).item(), 4)  # ln 4
        1.3863

    Source: Caron et al. 2020 (arXiv 2006.09882), equations 1 and 2, and section 3.2 for multi-crop.
    """
    if not route.is_traced():
        return loss_of(scores, codes, temperature, assign, backend)
    need = torch.is_grad_enabled() and scores.requires_grad
    loss: Tensor = torch.ops.swav_kernels.swapped_cross_entropy(
        scores, codes.detach(), temperature, list(assign), need, backend
    )[0]
    return loss


def loss_of(
    scores: Tensor,
    codes: Tensor,
    temperature: float,
    assign: Sequence[int],
    backend: str | None,
) -> Tensor:
    """The loss by a backend's kernels, with autograd."""
    name, temperature, crops = check(scores, codes, temperature, assign, backend)
    checks.check_readable(OP, name, scores=scores, codes=codes)
    if name == "reference":
        acc = checks.accumulate_dtype(scores, codes)
        return reference.swapped_cross_entropy(
            scores.to(acc), codes.detach().to(acc), crops, temperature
        )
    return run(scores, codes, crops, temperature, name)


def check(
    scores: Tensor,
    codes: Tensor,
    temperature: float,
    assign: Sequence[int],
    backend: str | None,
) -> tuple[str, float, tuple[int, ...]]:
    """Return the backend, the temperature and the assign crops of checked arguments."""
    checks.check_tensor(OP, "scores", scores, "[V, B, K]")
    checks.check_tensor(OP, "codes", codes, "[A, B, K]")
    temperature = checks.check_scale(OP, "temperature", temperature)
    num_crops, num_samples, num_prototypes = scores.shape
    crops = checks.check_assign(OP, assign, num_crops)
    checks.check_shape(OP, "codes", codes, (len(crops), num_samples, num_prototypes), "[A, B, K]")
    checks.check_not_empty(OP, "scores", num_prototypes, "K")
    checks.check_same_device(OP, scores=scores, codes=codes)
    name = dispatch.choose_backend(
        OP, scores.device, torch.promote_types(scores.dtype, codes.dtype), backend,
        scores=scores, codes=codes,
    )  # fmt: skip
    return name, temperature, crops


Arrange = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def as_they_are(scores: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [V, B, K] and codes [A, B, K] in the layout and dtype of the kernels."""
    if codes.dtype == torch.float64 or scores.dtype == torch.float64:
        scores, codes = scores.double(), codes.double()
    return scores.contiguous(), codes.contiguous()


def run(
    scores: Tensor,
    codes: Tensor,
    assign: tuple[int, ...],
    temperature: float,
    name: str,
    arrange: Arrange = as_they_are,
) -> Tensor:
    """The loss by the kernels of that name; arguments are checked.

    `arrange` brings scores and codes into the kernels' form.
    """
    kernels = dispatch.kernels(OP, name)
    arranged = arrange(scores, codes.detach())
    if not (torch.is_grad_enabled() and scores.requires_grad):
        loss: Tensor = kernels.loss_and_gradient(
            arranged[0].detach(), arranged[1], assign, temperature, False
        )[0]
        return loss
    kept = TensorWeakRef(scores), TensorWeakRef(codes)
    loss = _SwappedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        *arranged, assign, temperature, kernels, kept, arrange
    )
    return loss  # noqa: RET504  # its type is Tensor


class _SwappedCrossEntropy(torch.autograd.Function):
    """Loss and d_scores come from one sweep, so the forward pass already holds the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        codes: Tensor,
        assign: tuple[int, ...],
        temperature: float,
        kernels: ModuleType,
        kept: tuple[TensorWeakRef, ...],
        arrange: Arrange,
    ) -> Tensor:
        loss: Tensor
        loss, d_scores = kernels.loss_and_gradient(scores, codes, assign, temperature, True)
        ready_gradient.save(ctx, OP, kept, d_scores)
        ctx.dtype = scores.dtype
        ctx.reference = arrange, assign, temperature
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        arrange, *settings = ctx.reference

        def again(scores: Tensor, codes: Tensor) -> tuple[tuple[Tensor], Tensor]:
            acc = checks.accumulate_dtype(scores, codes)
            scores, codes = arrange(scores, codes.detach())
            loss = reference.swapped_cross_entropy(scores.to(acc), codes.to(acc), *settings)
            return (scores,), loss

        return (*ready_gradient.of(ctx, grad_output, ctx.dtype, again), *(None,) * 6)
