"""Public op `swav_loss`: features and prototypes in, the loss out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.distributed import Group, group_name
from swav_kernels.ops import route
from swav_kernels.ops.sinkhorn import DEFAULT_EPSILON, DEFAULT_ITERATIONS
from swav_kernels.ops.swapped_cross_entropy import DEFAULT_ASSIGN, DEFAULT_TEMPERATURE
from swav_kernels.ops.swav_loss_problem import OP, prepare
from swav_kernels.stats import unpacked


@checks.without_autocast
def swav_loss(
    features: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    epsilon: float = DEFAULT_EPSILON,
    iterations: int = DEFAULT_ITERATIONS,
    assign: Sequence[int] = DEFAULT_ASSIGN,
    queue: Tensor | None = None,
    potentials: Tensor | None = None,
    group: Group = None,
    hard: bool = False,
    prototype_weights: Tensor | None = None,
    precision: str = "float32",
    normalize: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """SwAV loss of a batch: scores, Sinkhorn codes and the swapped cross-entropy in one op.

    Equals `swapped_cross_entropy(prototype_scores(z, c), codes)` in value and gradient, where
    `codes[a] = sinkhorn(z[assign[a]] @ c.T joined with queue[a] @ c.T)`, batch rows kept; on `cpu`
    and `triton` nothing of size V * B * K is stored, unless precision="bfloat16" allows it.

    Args:
        features: [V, B, D], V >= 2 crops of B samples, L2-normalised (or pass normalize=True).
        prototypes: [K, D], L2-normalised rows.
        temperature: of the prediction's softmax, from 1e-30 to 1e30.
        epsilon: smoothing of the Sinkhorn, from 1e-30 to 1e30.
        iterations: T >= 1.
        assign: the A distinct crops whose codes are computed.
        queue: [A, L, D], features of earlier batches: they join the Sinkhorn, never the loss.
        potentials: [A, K], or [K] for all crops, in place of the Sinkhorn, of the same epsilon (see
            `swav_potentials`). "Without Sinkhorn" is zeros. No queue or
            prototype_weights beside them, and a group only for the stats.
        group: the process group the codes are balanced over; the loss stays this rank's mean.
        hard: one-hot codes.
        prototype_weights: [K], the share of samples each prototype gets; None is equal shares.
        precision: "bfloat16" rounds the operands of the products, sums stay float32. On `triton` it
            also stores scores in 16 bits where that saves products: 16 MiB to 4 GiB of them, soft
            codes, K <= 8192.
        normalize: L2-normalise features and queue first, with the gradient through it.
        return_stats: also return telemetry of the codes, without a host synchronisation.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        The loss, a float32 scalar (float64 for float64 inputs); 0 for an empty batch. With
        return_stats (loss, stats): 0-dim tensors over the batch rows of the assign crops (of all
        ranks of a group). Entropies are divided by ln K. Usage is the histogram of each sample's
        nearest prototype, the argmax of its scores.
        loss_minus_log_k; code_entropy, the mean over rows; mean_code_entropy, of the mean code;
        usage_entropy; prototypes_in_use, nearest to a sample; mean_max_code; marginal_residual,
        max_k |mean q_k / r_k - 1|, where r is 1 / K or prototype_weights over their sum;
        view_agreement, the share of samples whose assign crops have the same nearest prototype
        (mean over pairs of crops; NaN for one crop).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or shapes, devices or the backend do not fit.

    Example:
        >>> z = torch.randn(3, 8, 16, requires_grad=True)
        >>> c = torch.nn.functional.normalize(torch.randn(5, 16), dim=1).requires_grad_()
        >>> swav_loss(z, c, normalize=True).backward()
        >>> z.grad.shape, c.grad.shape
        (torch.Size([3, 8, 16]), torch.Size([5, 16]))

    Source: Caron et al. 2020 (arXiv 2006.09882), sections 3.1 and 3.2.
    """
    if route.is_traced():
        if normalize and features.is_floating_point():  # if not, the op says what is wrong
            features = checks.normalize_rows(features)
            queue = None if queue is None else checks.normalize_rows(queue.detach())
        grad = torch.is_grad_enabled()
        loss, _, _, packed = torch.ops.swav_kernels.swav_loss(
            features, prototypes, temperature, epsilon, iterations, list(assign),
            route.detached(queue), route.detached(potentials), group_name(OP, group), hard,
            prototype_weights, precision, return_stats, grad and features.requires_grad,
            grad and prototypes.requires_grad, backend,
        )  # fmt: skip
        return (loss, unpacked(packed)) if return_stats else loss
    problem = prepare(
        features, prototypes, temperature, epsilon, iterations, assign, queue, potentials, group,
        hard, prototype_weights, precision, normalize, return_stats, backend,
    )  # fmt: skip
    loss, rows = problem.run(return_stats)
    return (loss, problem.stats(loss, rows)) if return_stats else loss
