"""One checked Sinkhorn problem, and the ways through the backend that runs it."""

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, all_reduce, raise_if_not_finite, resolve_group
from swav_kernels.ops.iteration import potentials, shift_from_bound, solve
from swav_kernels.ops.weights import check_prototype_weights, check_sample_weights
from swav_kernels.reference import sinkhorn as reference

OP = "sinkhorn"


@dataclass(slots=True)
class Problem:
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

    def run(self, hard: bool, out: Tensor | None) -> Tensor:
        """Codes [A, N, K], into `out` if it is given."""
        if self.is_plain and not hard:
            return self.plain_codes(out)
        f = self.potentials() if self.iterations else self.unbalanced_potentials()
        return self.codes(f, hard, out)

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


def prepare(
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
    has_numbers: bool = True,
) -> Problem:
    """Check the arguments of the public function `op` and choose the backend.

    Without numbers, where a graph asks for shapes alone, none are looked for.
    """
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
    reader = name if has_numbers else "reference"
    checks.check_readable(op, reader, scores=scores)
    rows = scores.detach() if scores.dim() == 3 else scores.detach().unsqueeze(0)
    acc = checks.accumulate_dtype(scores)
    prototype_weights = check_prototype_weights(
        op, prototype_weights, num_prototypes, "scores", scores, acc, reader
    )
    sample_weights = check_sample_weights(
        op, sample_weights, num_problems, num_rows, "scores", scores, acc, reader
    )
    group = resolve_group(op, group, gather_distributed)
    if check_finite and has_numbers:
        raise_if_not_finite(op, "scores", scores.detach(), group)
    return Problem(
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
