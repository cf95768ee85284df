"""Sinkhorns and loss of lightly: `lightly.loss.swav_loss`, `.msn_loss` and `.capi_loss`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swav_kernels import checks
from swav_kernels.compat.capi import stabilised_sinkhorn
from swav_kernels.compat.inputs import (
    Names,
    check_epsilon,
    check_scores,
    codes_of_exponentials,
    codes_of_scores,
    dtype_of_exp,
    stack,
)  # fmt: skip
from swav_kernels.distributed import resolve_group, warn_if_ungrouped
from swav_kernels.ops.sinkhorn import DEFAULT_EPSILON, DEFAULT_ITERATIONS
from swav_kernels.ops.sinkhorn import sinkhorn as sinkhorn_op
from swav_kernels.ops.swapped_cross_entropy import DEFAULT_TEMPERATURE, swapped_cross_entropy


def sinkhorn(
    out: Tensor,
    iterations: int = DEFAULT_ITERATIONS,
    epsilon: float = DEFAULT_EPSILON,
    gather_distributed: bool = False,
) -> Tensor:
    """Codes of scores, as `swav_kernels.sinkhorn`.

    Args:
        out: scores [N, K].
        iterations: T >= 0; 0 returns `N * E / E.sum()`, E = exp(out / epsilon).
        epsilon: smoothing.
        gather_distributed: sum over all ranks once torch.distributed is initialised. The default,
            theirs, balances each rank by itself.

    Returns:
        codes [N, K] in the dtype of `exp(out)`.

    Raises:
        TypeError, ValueError: as `swav_kernels.sinkhorn`.

    Example:
        >>> sinkhorn(torch.eye(4)).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    names = Names("sinkhorn", scores="out")
    return codes_of_scores(names, out, iterations, epsilon, gather_distributed=gather_distributed)


class SwaVLoss(nn.Module):
    """The SwAV loss of lists of scores: codes of the large crops, swapped cross-entropy of all.

    Args:
        temperature: of the prediction's softmax.
        sinkhorn_iterations: T >= 0.
        sinkhorn_epsilon: smoothing.
        sinkhorn_gather_distributed: sum over all ranks once torch.distributed is initialised. The
            default, theirs, balances each rank by itself, and warns once if there are others.

    Example:
        >>> SwaVLoss()([torch.zeros(2, 4), torch.zeros(2, 4)], []).shape
        torch.Size([1])
    """

    def __init__(
        self,
        temperature: float = DEFAULT_TEMPERATURE,
        sinkhorn_iterations: int = DEFAULT_ITERATIONS,
        sinkhorn_epsilon: float = DEFAULT_EPSILON,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        checks.check_flags("SwaVLoss", sinkhorn_gather_distributed=sinkhorn_gather_distributed)
        if sinkhorn_gather_distributed and not torch.distributed.is_available():
            raise ValueError(
                "SwaVLoss: sinkhorn_gather_distributed needs torch.distributed, which this build "
                "of torch lacks; pass False, or install another build"
            )
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def forward(
        self,
        high_resolution_outputs: Sequence[Tensor],
        low_resolution_outputs: Sequence[Tensor],
        queue_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss [1], float32 (float64 for float64 scores).

        Args:
            high_resolution_outputs: A scores [B, K], whose codes all other crops predict.
            low_resolution_outputs: more scores [B, K].
            queue_outputs: A scores [L, K] that join the Sinkhorn alone.
        """
        op = "SwaVLoss"
        names = Names(
            op, "high_resolution_outputs", "sinkhorn_iterations", "sinkhorn_epsilon",
            assign="high_resolution_outputs",
        )  # fmt: skip
        large = stack(op, "high_resolution_outputs", high_resolution_outputs)
        if not large:
            raise ValueError(f"{op}: high_resolution_outputs must not be empty, got none; pass 2")
        small = stack(op, "low_resolution_outputs", low_resolution_outputs, large[0])
        group = resolve_group(op, None, self.sinkhorn_gather_distributed)
        # past forward and the two functions of torch that call it
        warn_if_ungrouped("SwaVLoss", group, "sinkhorn_gather_distributed=True", stacklevel=5)
        num_assign = len(large)
        scores = torch.stack([*large, *small])  # [V, B, K]
        rows = scores[:num_assign].detach()
        if queue_outputs is not None:
            queue = _stack_queue(op, queue_outputs, large)
            rows = torch.cat([rows, queue], 1)  # [A, B + L, K]: all crops in one message
        codes = names.call(
            sinkhorn_op, rows, self.sinkhorn_iterations, self.sinkhorn_epsilon, group=group
        )
        codes = codes[:, : scores.shape[1]]
        loss = names.call(
            swapped_cross_entropy, scores, codes, self.temperature, assign=range(num_assign)
        )
        return loss.unsqueeze(0)


def _stack_queue(op: str, queue_outputs: Sequence[Tensor], large: list[Tensor]) -> Tensor:
    """[A, L, K] of the queues of the large crops, beside scores [B, K]."""
    queues = stack(op, "queue_outputs", queue_outputs)[: len(large)]
    if len(queues) < len(large):
        raise ValueError(
            f"{op}: queue_outputs must hold scores for each of the {len(large)} large crops, "
            f"got {len(queues)}; pass None where there is no queue"
        )
    rows, columns = queues[0].shape[0], large[0].shape[1]
    checks.check_shape(op, "queue_outputs", queues[0], (rows, columns), "[L, K]")
    checks.check_same_device(op, high_resolution_outputs=large[0], queue_outputs=queues[0])
    return torch.stack(queues).detach()


def msn_sinkhorn(
    probabilities: Tensor,
    iterations: int = DEFAULT_ITERATIONS,
    gather_distributed: bool = False,
) -> Tensor:
    """Codes of probabilities: `swav_kernels.sinkhorn` of `log(probabilities)` with epsilon 1.

    Not the codes of the scores behind them: a softmax has divided each sample by a factor of its
    own, which a finite number of iterations does not undo.

    Args:
        probabilities: [N, K].
        iterations: T; 0 or less returns the probabilities.
        gather_distributed: sum over all ranks once torch.distributed is initialised.

    Returns:
        codes [N, K] in the dtype of the probabilities.

    Raises:
        TypeError, ValueError: as `swav_kernels.sinkhorn`.

    Example:
        >>> msn_sinkhorn(torch.eye(4) * 0.6 + 0.1).argmax(1).tolist()
        [0, 1, 2, 3]
    """
    op = "msn_sinkhorn"
    check_scores(op, "probabilities", probabilities, "[N, K]")
    iterations = checks.check_iterations(op, iterations, -checks.MOST_ITERATIONS)
    checks.check_flags(op, gather_distributed=gather_distributed)
    if iterations <= 0:
        return probabilities
    codes = codes_of_exponentials(
        Names(op, "probabilities"), probabilities, iterations, layout="[N, K]",
        gather_distributed=gather_distributed,
    )  # fmt: skip
    return codes.to(probabilities.dtype)


def capi_sinkhorn_knopp(
    logits: Tensor,
    iterations: int = DEFAULT_ITERATIONS,
    gather_distributed: bool = False,
    epsilon: float = 1e-8,
    *,
    strict: bool = False,
) -> Tensor:
    """Codes of each position by itself: the B samples of one position are one Sinkhorn.

    Args:
        logits: [B, S, K], divided by the temperature already.
        iterations: T; 0 returns exp(logits - their maximum over the samples).
        gather_distributed: sum over all ranks once torch.distributed is initialised.
        epsilon: what `strict` adds to the denominators; the exact codes need none.
        strict: add epsilon to the denominators as lightly does; rows then sum to less than 1, and
            a row that is far below all maxima gets zeros.

    Returns:
        codes [B, S, K] in the dtype of `exp(logits)`.

    Raises:
        TypeError, ValueError: as `swav_kernels.sinkhorn`.

    Example:
        >>> capi_sinkhorn_knopp(torch.eye(4).div(0.05).unsqueeze(1)).argmax(-1).flatten().tolist()
        [0, 1, 2, 3]
    """
    op = "capi_sinkhorn_knopp"
    check_scores(op, "logits", logits, "[B, S, K]")
    iterations = checks.check_iterations(op, iterations, 0)
    epsilon = check_epsilon(op, "epsilon", epsilon)
    checks.check_flags(op, strict=strict, gather_distributed=gather_distributed)
    positions = logits.detach().transpose(0, 1)  # [S, B, K]
    if strict or iterations == 0:
        group = resolve_group(op, None, gather_distributed)
        codes = stabilised_sinkhorn(positions, iterations, epsilon, 0.0, group)
        codes = codes.to(dtype_of_exp(logits))
    else:
        codes = codes_of_scores(
            Names(op, "logits"), positions, iterations, 1.0, gather_distributed=gather_distributed
        )
    return codes.transpose(0, 1)
