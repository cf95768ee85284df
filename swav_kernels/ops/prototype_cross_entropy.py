"""Public op `prototype_cross_entropy`: a student predicts the codes of a teacher, row by row.

It runs on the kernels of `swapped_cross_entropy`, whose two crops are the halves of the rows.
"""

import functools

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.ops import route
from swav_kernels.ops import swapped_cross_entropy as swapped
from swav_kernels.reference import prototype_cross_entropy as reference

OP = "prototype_cross_entropy"
ASSIGN = (1, 0)  # the codes of crop 1 are predicted by crop 0, and come first


@checks.without_autocast
def prototype_cross_entropy(
    student_scores: Tensor,
    teacher_codes: Tensor,
    temperature: float = swapped.DEFAULT_TEMPERATURE,
    weights: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of a student's prediction with a teacher's codes, as in DINO and iBOT.

    `loss = -(weights * (teacher_codes * log_p).sum(-1)).sum() / N` with
    `log_p = log_softmax(student_scores / temperature, -1)`; equal weights of 1 are the mean.

    Args:
        student_scores: [N, K]; -inf masks a prototype.
        teacher_codes: [N, K]. Rows may sum to anything. They carry no gradient.
        temperature: of the student's softmax, from 1e-30 to 1e30.
        weights: [N], how much a row counts; None is 1 each. They carry no gradient. iBOT's mean
            over images, with the masked patches of an image sharing a weight of 1, is
            `weights = N / num_images / masked_patches_of_the_row's_image`.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        The loss, a float32 scalar (float64 for float64 inputs); 0 for no rows.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes or devices do not fit, or the backend cannot run here.

    Example:
        >>> scores, codes = torch.zeros(3, 4), torch.full((3, 4), 0.25)
        >>> round(prototype_cross_entropy(scores, codes).item(), 4)  # ln 4
        1.3863

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), equation 2; Zhou et al. 2022 (iBOT, arXiv
    2111.07832), equation 2.
    """
    if not route.is_traced():
        return loss_of(student_scores, teacher_codes, temperature, weights, backend)
    need = torch.is_grad_enabled() and student_scores.requires_grad
    loss: Tensor = torch.ops.swav_kernels.prototype_cross_entropy(
        student_scores, teacher_codes.detach(), temperature, weights, need, backend
    )[0]
    return loss


def loss_of(
    student_scores: Tensor,
    teacher_codes: Tensor,
    temperature: float,
    weights: Tensor | None,
    backend: str | None,
) -> Tensor:
    """The loss by a backend's kernels, with autograd."""
    name, temperature = check(student_scores, teacher_codes, temperature, weights, backend)
    checks.check_readable(
        OP, name, student_scores=student_scores, teacher_codes=teacher_codes, weights=weights
    )
    acc = checks.accumulate_dtype(student_scores, teacher_codes)
    weights = None if weights is None else weights.detach().to(acc)
    if name == "reference":
        return reference.prototype_cross_entropy(
            student_scores.to(acc), teacher_codes.detach().to(acc), temperature, weights
        )
    loss = swapped.run(
        student_scores, teacher_codes, ASSIGN, temperature, name, functools.partial(halves, weights)
    )
    return loss * unpadded(len(student_scores)) if len(student_scores) % 2 else loss


def check(
    student_scores: Tensor,
    teacher_codes: Tensor,
    temperature: float,
    weights: Tensor | None,
    backend: str | None,
) -> tuple[str, float]:
    """Return the backend and the temperature of checked arguments."""
    checks.check_tensor(OP, "student_scores", student_scores, "[N, K]")
    checks.check_tensor(OP, "teacher_codes", teacher_codes, "[N, K]")
    checks.check_shape(OP, "teacher_codes", teacher_codes, student_scores.shape, "[N, K]")
    checks.check_not_empty(OP, "student_scores", student_scores.shape[1], "K")
    temperature = checks.check_scale(OP, "temperature", temperature)
    if weights is not None:
        checks.check_tensor(OP, "weights", weights, "[N]")
        checks.check_shape(OP, "weights", weights, student_scores.shape[:1], "[N]")
    checks.check_same_device(
        OP, student_scores=student_scores, teacher_codes=teacher_codes, weights=weights
    )
    name = dispatch.choose_backend(
        swapped.OP, student_scores.device,
        torch.promote_types(student_scores.dtype, teacher_codes.dtype), backend, caller=OP,
        student_scores=student_scores, teacher_codes=teacher_codes,
    )  # fmt: skip
    return name, temperature


def halves(weights: Tensor | None, scores: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [N, K] as two crops, each of which predicts the codes beside it."""
    if weights is not None:
        codes = codes.to(weights.dtype) * weights.unsqueeze(1)  # the loss is linear in them
    num_rows, num_prototypes = scores.shape
    is_odd = num_rows % 2
    if is_odd:  # a row of no codes adds nothing, and gets no gradient
        scores = torch.cat([scores, scores.new_zeros(1, num_prototypes)])
        codes = torch.cat([codes, codes.new_zeros(1, num_prototypes)])
    shape = (2, (num_rows + is_odd) // 2, num_prototypes)
    return swapped.as_they_are(scores.reshape(shape), codes.reshape(shape))


def unpadded(num_rows: int) -> float:
    """What makes the mean over the rows of `halves`, N + 1 for an odd N, one over N rows."""
    return (num_rows + num_rows % 2) / max(num_rows, 1)
