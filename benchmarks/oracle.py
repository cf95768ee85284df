"""What is right, in float64 and in pieces: exact, with little memory, at any size.

Written from the formulas (each is checked against autograd in the suite's tests), and apart from
every implementation that is timed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import ASSIGN, EPSILON, ITERATIONS, TEMPERATURE, Bound, Outputs

CHUNK = 2**22  # float64 numbers of a piece: 32 MiB
MOST_COMPARED = 2**26  # codes that are compared; of larger matrices, rows spread over all of them


@dataclass(frozen=True)
class SinkhornOracle:
    """Exact potentials; codes are made from them row by row when they are compared."""

    scores: Tensor  # [N, K]
    potentials: Tensor  # [K]

    @classmethod
    def of(cls, scores: Tensor) -> "SinkhornOracle":
        """Balance scores [N, K]."""
        return cls(scores, potentials(lambda: (scores[rows].double() for rows in _rows(scores))))

    def share(self, outputs: Outputs, bounds: tuple[Bound, ...]) -> float:
        """Compare codes [N, K], or the codes that potentials [K] stand for."""
        (got,) = outputs
        (bound,) = bounds
        if got.dim() == 2 and got.shape != self.scores.shape:
            return torch.inf
        step = -(-self.scores.numel() // MOST_COMPARED)  # every row, or every step-th
        shares = [0.0]
        for rows in _rows(self.scores[::step]):
            logits = self.scores[::step][rows].double() / EPSILON
            want = torch.softmax(logits + self.potentials, 1)
            codes = torch.softmax(logits + got.double(), 1) if got.dim() == 1 else got[::step][rows]
            shares.append(bound.share(codes, want))
        return max(shares)


@dataclass(frozen=True)
class TensorOracle:
    """Results small enough to be kept."""

    expected: Outputs

    def share(self, outputs: Outputs, bounds: tuple[Bound, ...]) -> float:
        """Compare each output with its own bound."""
        return max(
            bound.share(got, want)
            for got, want, bound in zip(outputs, self.expected, bounds, strict=True)
        )


def prototype_scores(features: Tensor, prototypes: Tensor) -> TensorOracle:
    """[N, D], [K, D] -> scores [N, K]."""
    return TensorOracle((features.double() @ prototypes.double().t(),))


def swapped_cross_entropy(scores: Tensor, codes: Tensor, gradient: bool) -> TensorOracle:
    """[V, B, K], [A, B, K] -> the loss, d_scores [V, B, K] if asked for."""
    num_crops, num_samples, _ = scores.shape
    weight = 1 / (len(ASSIGN) * (num_crops - 1) * num_samples)
    loss = scores.new_zeros((), dtype=torch.float64)
    d_scores = torch.empty(scores.shape if gradient else 0, dtype=torch.float64).to(scores.device)
    for rows in _rows(scores[0]):
        chunk, q = scores[:, rows].double(), codes[:, rows].double()
        for crop in range(num_crops):
            target = sum(q[a] for a, i in enumerate(ASSIGN) if i != crop)
            total = target.sum(1, keepdim=True)
            lse = torch.logsumexp(chunk[crop] / TEMPERATURE, 1, keepdim=True)
            loss += (total * lse).sum() - (target * chunk[crop]).sum() / TEMPERATURE
            if gradient:
                d_logits = total * torch.softmax(chunk[crop] / TEMPERATURE, 1) - target
                d_scores[crop, rows] = weight / TEMPERATURE * d_logits
    return TensorOracle((weight * loss, d_scores) if gradient else (weight * loss,))


def swav_loss(features: Tensor, prototypes: Tensor, gradient: bool) -> TensorOracle:
    """[V, B, D], [K, D] -> the loss; d_features, d_prototypes if asked for."""
    z, c = features.detach().double(), prototypes.detach().double()
    num_crops, num_samples, _ = z.shape
    weight = 1 / (len(ASSIGN) * (num_crops - 1) * num_samples)
    pieces = list(_slices(num_samples, len(c)))
    f = [potentials(lambda i=i: (z[i, rows] @ c.t() for rows in pieces)) for i in ASSIGN]
    loss, d_z, d_c = z.new_zeros(()), torch.zeros_like(z), torch.zeros_like(c)
    for rows in pieces:
        codes = [
            torch.softmax(z[i, rows] @ c.t() / EPSILON + f[a], 1) for a, i in enumerate(ASSIGN)
        ]
        for crop in range(num_crops):
            s = z[crop, rows] @ c.t() / TEMPERATURE
            targets = [q for q, i in zip(codes, ASSIGN, strict=True) if i != crop]
            lse = torch.logsumexp(s, 1)
            loss += len(targets) * lse.sum() - sum((q * s).sum() for q in targets)
            if gradient:
                d_s = len(targets) * torch.softmax(s, 1) - sum(targets)
                d_z[crop, rows] = weight / TEMPERATURE * (d_s @ c)
                d_c += weight / TEMPERATURE * (d_s.t() @ z[crop, rows])
    return TensorOracle((weight * loss, d_z, d_c) if gradient else (weight * loss,))


def prototype_distillation_loss(
    features: Tensor,
    prototypes: Tensor,
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    gradient: bool,
) -> TensorOracle:
    """[N, D], [K, D], [N, E], [K, E] -> the loss; d_features, d_prototypes if asked for."""
    z, c, t, e = (
        x.detach().double() for x in (features, prototypes, teacher_features, teacher_prototypes)
    )
    pieces = list(_slices(len(z), len(c)))
    f = potentials(lambda: (t[rows] @ e.t() for rows in pieces))
    weight = 1 / (len(z) * TEMPERATURE)
    loss, d_z, d_c = z.new_zeros(()), torch.zeros_like(z), torch.zeros_like(c)
    for rows in pieces:
        q = torch.softmax(t[rows] @ e.t() / EPSILON + f, 1)
        s = z[rows] @ c.t()
        loss += weight * (TEMPERATURE * torch.logsumexp(s / TEMPERATURE, 1).sum() - (q * s).sum())
        if gradient:
            d_s = weight * (torch.softmax(s / TEMPERATURE, 1) - q)
            d_z[rows] = d_s @ c
            d_c += d_s.t() @ z[rows]
    return TensorOracle((loss, d_z, d_c) if gradient else (loss,))


def potentials(chunks: Callable[[], Iterable[Tensor]]) -> Tensor:
    """T times u_k = 1 / sum_b a_b E_bk and a_b = 1 / sum_k u_k E_bk; return log u [K].

    `chunks` yields the scores anew for each iteration, a few rows at a time. Cosines over epsilon
    are far from where float64 exponentials end, so the linear form is exact.
    """
    u: Tensor | None = None
    for _ in range(ITERATIONS):
        sums: Tensor | float = 0.0
        for chunk in chunks():
            e = torch.exp(chunk / EPSILON)
            sums = sums + (e.sum(0) if u is None else (1 / (e @ u)) @ e)
        u = 1 / sums
    assert u is not None
    return u.log()


def _rows(matrix: Tensor) -> Iterator[slice]:
    return _slices(*matrix.shape)


def _slices(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, CHUNK // num_columns)
    return (slice(start, start + step) for start in range(0, num_rows, step))
