"""Public ops `sinkhorn` and `sinkhorn_potentials`: balanced soft codes from scores."""

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, all_reduce, raise_if_not_finite, resolve_group
from swav_kernels.ops.iteration import potentials, shift_from_bound, solve
from swav_kernels.ops.output import check_out
from swav_kernels.ops.weights import check_prototype_weights, check_sample_weights
from swav_kernels.reference import sinkhorn as reference

OP = "sinkhorn"
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
    problem = _prepare(
        OP, scores, iterations, 0, epsilon, gather_distributed, group, prototype_weights,
        sample_weights, score_bound, precision, check_finite, backend,
    )  # fmt: skip
    if hard is not False:
        checks.check_flags(OP, hard=hard)
    check_out(OP, out, scores, problem.acc)
    if problem.is_plain and not hard:
        codes = problem.plain_codes(out)
    else:
        f = problem.potentials() if problem.iterations else problem.unbalanced_potentials()
        codes = problem.codes(f, hard, out)
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
    problem = _prepare(
        "sinkhorn_potentials", scores, iterations, 1, epsilon, gather_distributed, group,
        prototype_weights, sample_weights, score_bound, precision, check_finite, backend,
    )  # fmt: skip
    f = problem.potentials()
    return f if scores.dim() == 3 else f.squeeze(0)


@dataclass(slots=True)
class _Problem:
    """Checked arguments of one call, and the backend that runs it (None: the reference)."""

    scores: Tensor  # [A, N, K]
    iterations: int
    epsilon: float
    prototype_weights: Tensor | None  # [K]
    sample_weights: Tensor | None  # [A, N]
    shift: float | None
    group: Group
    precision: str
    acc: torch.dtype
    kernels: ModuleType | None

    @property
    def is_plain(self) -> bool:
        """True where one kernel may make the soft codes by itself."""
        is_weighted = self.prototype_weights is not None or self.sample_weights is not None
        alone = self.group is None and not is_weighted and self.iterations > 0
        return alone and hasattr(self.kernels, "sinkhorn")

    def plain_codes(self, out: Tensor | None) -> Tensor:
        """Soft codes [A, N, K] of a plain problem, into `out` if it is given."""
        assert self.kernels is not None
        if out is None:
            out = torch.empty_like(self.scores, dtype=self.acc)
        shaped = out if out.dim() == 3 else out.unsqueeze(0)
        self.kernels.sinkhorn(self.scores, self.epsilon, self.iterations, shaped)
        return out

    def potentials(self) -> Tensor:
        """F [A, K]."""
        if self.kernels is None:
            return reference.potentials(
                self.scores.to(self.acc), self.iterations, self.epsilon, self.sample_weights,
                self.prototype_weights, self.shift, self.group,
            )  # fmt: skip
        return potentials(
            self.kernels, (self.scores,), self.sample_weights, self.prototype_weights, self.epsilon,
            self.iterations, self.shift, self.group, self.precision,
        )  # fmt: skip

    def unbalanced_potentials(self) -> Tensor:
        """T = 0: f [A, K], one constant a problem, for which exp(s / epsilon + f) = N E / sum E."""
        num_problems, num_rows, num_prototypes = self.scores.shape
        kernels = self.kernels
        if kernels is None:
            f = reference.unbalanced_potentials(self.scores.to(self.acc), self.epsilon, self.group)
        else:
            # one iteration's column sums hold all of sum E
            f = solve(
                lambda: kernels.column_stats(self.scores, None, self.epsilon),
                None, 1, None, self.shift, self.group,
            )  # fmt: skip
            column_lse = torch.where(f == -math.inf, f, -f)  # a masked column adds nothing
            count = torch.full((1,), num_rows, dtype=self.acc, device=self.scores.device)
            count = all_reduce(count, "sum", self.group)
            f = (count.log() - column_lse.logsumexp(-1)).unsqueeze(-1)
        return f.expand(num_problems, num_prototypes).contiguous()

    def codes(self, f: Tensor, hard: bool, out: Tensor | None) -> Tensor:
        """Codes [A, N, K] from potentials, into `out` if it is given."""
        if self.kernels is None:
            scores = self.scores.to(self.acc)
            if self.iterations or hard:
                codes = reference.codes(scores, f, self.epsilon, hard)
            else:
                codes = (scores / self.epsilon + f.unsqueeze(1)).exp()
            return codes if out is None else out.copy_(codes.view(out.shape))
        if out is None:
            out = torch.empty(self.scores.shape, dtype=self.acc, device=self.scores.device)
        self.kernels.codes(
            self.scores, f, self.epsilon, hard, self.iterations > 0, out.view(self.scores.shape)
        )
        return out


def _prepare(
    op: str,
    scores: Tensor,
    iterations: int,
    least_iterations: int,
    epsilon: float,
    gather_distributed: bool,
    group: Group,
    prototype_weights: Tensor | None,
    sample_weights: Tensor | None,
    score_bound: float | None,
    precision: str,
    check_finite: bool,
    backend: str | None,
) -> _Problem:
    checks.check_tensor(op, "scores", scores, "[N, K]", "[A, N, K]")
    iterations = checks.check_iterations(op, iterations, least_iterations)
    epsilon = checks.check_scale(op, "epsilon", epsilon)
    checks.check_precision(op, precision)
    if gather_distributed is not False or check_finite is not False:
        checks.check_flags(op, gather_distributed=gather_distributed, check_finite=check_finite)
    if score_bound is not None:
        score_bound = checks.check_score_bound(op, score_bound)
    *_, num_rows, num_prototypes = scores.shape
    num_problems = scores.shape[0] if scores.dim() == 3 else 1
    checks.check_not_empty(op, "scores", num_prototypes, "K")
    name = dispatch.choose_backend(OP, scores.device, scores.dtype, backend, caller=op)
    checks.check_readable(op, name, scores=scores)
    rows = scores.detach() if scores.dim() == 3 else scores.detach().unsqueeze(0)
    acc = checks.accumulate_dtype(scores)
    prototype_weights = check_prototype_weights(
        op, prototype_weights, num_prototypes, "scores", scores, acc, name
    )
    sample_weights = check_sample_weights(
        op, sample_weights, num_problems, num_rows, "scores", scores, acc, name
    )
    group = resolve_group(op, group, gather_distributed)
    if check_finite:
        raise_if_not_finite(op, "scores", scores.detach(), group)
    return _Problem(
        scores=rows.contiguous(),
        iterations=iterations,
        epsilon=epsilon,
        prototype_weights=prototype_weights,
        sample_weights=sample_weights,
        shift=None if sample_weights is not None else shift_from_bound(score_bound, epsilon),
        group=group,
        precision=precision,
        acc=acc,
        kernels=None if name == "reference" else dispatch.kernels(OP, name),
    )
