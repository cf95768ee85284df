"""Public op `prototype_cross_entropy`: a student predicts the codes of a teacher, row by row.

It runs on the kernels of `swapped_cross_entropy`, whose two crops are the halves of the rows.
"""

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.ops import swapped_cross_entropy as swapped
from swav_kernels.reference import prototype_cross_entropy as reference

OP = "prototype_cross_entropy"


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
    )  # fmt: skip
    checks.check_readable(
        OP, name, student_scores=student_scores, teacher_codes=teacher_codes, weights=weights
    )
    acc = checks.accumulate_dtype(student_scores, teacher_codes)
    codes = teacher_codes.detach()
    weights = None if weights is None else weights.detach().to(acc)
    if name == "reference":
        return reference.prototype_cross_entropy(
            student_scores.to(acc), codes.to(acc), temperature, weights
        )
    if weights is not None:
        codes = codes.to(acc) * weights.unsqueeze(1)  # the loss is linear in them
    return _mean_over_rows(student_scores, codes, temperature, name)


def _mean_over_rows(scores: Tensor, codes: Tensor, temperature: float, name: str) -> Tensor:
    """The rows [N, K] as two crops, each of which predicts the codes beside it."""
    num_rows, num_prototypes = scores.shape
    is_odd = num_rows % 2
    if is_odd:  # a row of no codes adds nothing, and gets no gradient
        scores = torch.cat([scores, scores.new_zeros(1, num_prototypes)])
        codes = torch.cat([codes, codes.new_zeros(1, num_prototypes)])
    halves = (2, (num_rows + is_odd) // 2, num_prototypes)
    # assign (1, 0): the codes of crop 1 are predicted by crop 0, and come first
    loss = swapped.run(scores.reshape(halves), codes.reshape(halves), (1, 0), temperature, name)
    return loss * ((num_rows + 1) / num_rows) if is_odd else loss
