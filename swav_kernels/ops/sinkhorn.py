"""Public ops `sinkhorn` and `sinkhorn_potentials`: balanced soft codes from scores."""

import torch
from torch import Tensor

from swav_kernels import checks
from swav_kernels.distributed import Group, group_name
from swav_kernels.ops import route
from swav_kernels.ops.output import check_out, check_out_form
from swav_kernels.ops.sinkhorn_problem import OP, prepare

DEFAULT_EPSILON = 0.05  # Caron et al. 2020, appendix A
DEFAULT_ITERATIONS = 3


@checks.without_autocast
def sinkhorn(
    scores: Tensor,
    iterations: int = DEFAULT_ITERATIONS,
    epsilon: float = DEFAULT_EPSILON,
    gather_distributed: bool = False,
    *,
    group: Group = None,
    hard: bool = False,
    prototype_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    score_bound: float | None = None,
    precision: str = "float32",
    check_finite: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Balanced soft assignment of samples to prototypes by T Sinkhorn iterations.

    With `E = exp(scores / epsilon)` and `a = 1`, T times
    `u[k] = r[k] / sum_b(w[b] * a[b] * E[b, k])` and `a[b] = 1 / sum_k(u[k] * E[b, k])`; then
    `codes = softmax(scores / epsilon + log(u), -1)`. Computed in the log domain: no overflow, no
    underflow to NaN, for any epsilon. Adding a constant or any term per prototype to the scores
    changes nothing. Codes carry no gradient.

    Args:
        scores: [N, K], rows are samples; or [A, N, K], A independent problems. -inf gives code 0.
        iterations: T >= 0; 0 returns `N * E / E.sum()` (weights have no part in it).
        epsilon: smoothing, from 1e-30 to 1e30, in units of the scores: smaller is sharper.
        gather_distributed: sum over all ranks once torch.distributed is initialised.
        group: the process group to sum over; None is this process alone.
        hard: one-hot rows, the largest code, lowest index on ties.
        prototype_weights: [K], r up to a constant factor: the share of the samples each prototype
            gets; 0 switches a prototype off. None: equal shares.
        sample_weights: [N] or [A, N], w: how much a row counts in the column sums. Every row gets
            codes all the same.
        score_bound: a promise that |scores| <= bound (1.0 for cosines), which saves a group one
            all-reduce where bound / epsilon <= 40.
        precision: "bfloat16" allows a backend to trade digits for speed; "float32" never does.
        check_finite: raise on NaN or +inf, naming rank and row, on all ranks together. Costs a host
            synchronisation. Without it they make all codes of their problem NaN.
        out: contiguous tensor for the codes, of their shape and dtype; may be `scores` itself.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; None follows `use_backend`.

    Returns:
        codes of the shape of scores, rows sum to 1: float32 (also for half scores), float64 for
        float64. A row that is all -inf is NaN (0 for iterations=0).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, shapes or devices do not fit, the backend cannot
            run here, or check_finite found a bad row.

    Example:
        >>> codes = sinkhorn(torch.eye(4), iterations=3, epsilon=0.05)
        >>> codes.argmax(1).tolist()
        [0, 1, 2, 3]

    Source: Cuturi 2013; Caron et al. 2020 (arXiv 2006.09882), section 3.1, equations 3 to 5.
    """
    if route.is_indirect():
        codes: Tensor = torch.ops.swav_kernels.sinkhorn(
            route.detached(scores), iterations, epsilon,
            group_name(OP, group, gather_distributed), hard, prototype_weights, sample_weights,
            score_bound, precision, check_finite, backend,
        )  # fmt: skip
        if out is None:
            return codes
        check_out_form(OP, out, scores, codes.dtype)
        return out.copy_(codes)
    problem = prepare(
        OP, scores, iterations, 0, epsilon, gather_distributed, group, prototype_weights,
        sample_weights, score_bound, precision, check_finite, backend,
    )  # fmt: skip
    if hard is not False:
        checks.check_flags(OP, hard=hard)
    check_out(OP, out, scores, problem.acc)
    codes = problem.run(hard, out)
    if out is None:
        return codes.view_as(scores)
    if problem.kernels is not None and not out.is_inference():
        torch.autograd.graph.increment_version(out)  # written behind autograd's back
    return out


@checks.without_autocast
def sinkhorn_potentials(
    scores: Tensor,
    iterations: int = DEFAULT_ITERATIONS,
    epsilon: float = DEFAULT_EPSILON,
    gather_distributed: bool = False,
    *,
    group: Group = None,
    prototype_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    score_bound: float | None = None,
    precision: str = "float32",
    check_finite: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Prototype potentials f = log u of `sinkhorn`: `codes = softmax(scores / epsilon + f, -1)`.

    Potentials stand for the codes of any row, at K numbers a problem in place of N * K. They are
    defined up to a constant, so compare them through codes only.

    Args:
        scores: [N, K] or [A, N, K], and all other arguments, as in `sinkhorn`; iterations >= 1.
        iterations: T >= 1.
        epsilon: as in `sinkhorn`; use the same one with the potentials.
        gather_distributed: as in `sinkhorn`.
        group: as in `sinkhorn`.
        prototype_weights: as in `sinkhorn`.
        sample_weights: as in `sinkhorn`.
        score_bound: as in `sinkhorn`.
        precision: as in `sinkhorn`.
        check_finite: as in `sinkhorn`.
        backend: as in `sinkhorn`.

    Returns:
        f [K] or [A, K], float32 (float64 for float64): -inf for a prototype that is masked
        everywhere or has weight 0; NaN if the problem holds NaN or +inf.

    Raises:
        TypeError: as in `sinkhorn`.
        ValueError: as in `sinkhorn`, and for iterations below 1.

    Example:
        >>> scores = torch.eye(4)
        >>> f = sinkhorn_potentials(scores)
        >>> torch.allclose(torch.softmax(scores / 0.05 + f, -1), sinkhorn(scores))
        True

    Source: Caron et al. 2020 (arXiv 2006.09882), section 3.1; Peyre and Cuturi 2019, section 4.4.
    """
    if route.is_indirect():
        f: Tensor = torch.ops.swav_kernels.sinkhorn_potentials(
            route.detached(scores), iterations, epsilon,
            group_name("sinkhorn_potentials", group, gather_distributed), prototype_weights,
            sample_weights, score_bound, precision, check_finite, backend,
        )  # fmt: skip
        return f
    problem = prepare(
        "sinkhorn_potentials", scores, iterations, 1, epsilon, gather_distributed, group,
        prototype_weights, sample_weights, score_bound, precision, check_finite, backend,
    )  # fmt: skip
    f = problem.potentials()
    return f if scores.dim() == 3 else f.squeeze(0)
