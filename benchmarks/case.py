"""The words of the suite: a shape, the work it needs, a bound on errors, a contender, a case."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

EPSILON, TEMPERATURE, ITERATIONS, ASSIGN = 0.05, 0.1, 3, (0, 1)  # the paper's setting
DIM = 128
FLOAT = 4  # bytes
TINY = 8  # samples and prototypes

Inputs = dict[str, Tensor]
Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]


@dataclass(frozen=True)
class Shape:
    """Sizes of one case: (samples, prototypes), or (crops, samples, prototypes)."""

    sizes: tuple[int, ...]
    group: str  # small, paper, large, or sweep
    dim: int = DIM
    gpu_only: bool = False
    gradient: bool = True  # of an op that has one: forward and backward, or forward alone

    @property
    def name(self) -> str:
        """Sizes as people say them; the dimension unless it is the paper's."""
        name = "x".join(map(str, self.sizes))
        name += "" if self.dim == DIM else f" D{self.dim}"
        return name if self.gradient else f"{name} forward"

    def tiny(self) -> "Shape":
        """Return a shape of a few samples and prototypes, with the same crops and dimension."""
        return replace(self, sizes=(*self.sizes[:-2], TINY, TINY))

    @property
    def num_crops(self) -> int:
        """V, 1 for an op that knows no crops."""
        return self.sizes[0] if len(self.sizes) == 3 else 1

    @property
    def matrix_bytes(self) -> int:
        """Of one float32 matrix [samples, prototypes]."""
        return FLOAT * self.sizes[-2] * self.sizes[-1]

    @property
    def num_pairs(self) -> int:
        """Terms of the loss: every assign crop with every other crop."""
        return len(ASSIGN) * (self.num_crops - 1)


@dataclass(frozen=True)
class Work:
    """The least that any implementation must do; how it is counted is said where it is made."""

    bytes: int  # moved to and from memory
    flops: int  # all of them, an exponential counted as one
    matrix_flops: int  # those in matrix products
    exps: int
    working_set: int  # bytes of inputs and outputs


@dataclass(frozen=True)
class Bound:
    """|got - want| <= absolute + relative |want| + largest max |want|."""

    absolute: float = 0.0
    relative: float = 0.0
    largest: float = 0.0

    def share(self, got: Tensor, want: Tensor) -> float:
        """Return the largest error over its bound; NaN counts as infinite."""
        if got.shape != want.shape:
            return torch.inf
        size = want.abs()
        allowed = self.absolute + self.relative * size + self.largest * size.max()
        return ((got.double() - want).abs() / allowed).nan_to_num(nan=torch.inf).max().item()

    def times(self, factor: float) -> "Bound":
        """Return the bound, that many times as loose."""
        return Bound(self.absolute * factor, self.relative * factor, self.largest * factor)


LOSS_BOUND = Bound(absolute=1e-6, relative=1e-6)
GRADIENT_BOUND = Bound(largest=2e-6 + 1e-7 / EPSILON)
# operands rounded to bfloat16: looser by far, and stated
BF16_CODES_BOUND = Bound(absolute=2e-6, relative=0.04)
BF16_LOSS_BOUND = Bound(relative=0.01)
BF16_GRADIENT_BOUND = Bound(largest=0.02)


class Oracle(Protocol):
    """Float64 results of a case, computed once from its inputs."""

    def share(self, outputs: Outputs, bounds: tuple[Bound, ...]) -> float:
        """Return the largest error over its bound among the outputs."""


@dataclass(frozen=True)
class Variant:
    """One way to call our op."""

    name: str
    prepare: Callable[[Inputs, str], Call]  # (inputs, backend) -> what is timed
    work: Work
    bounds: tuple[Bound, ...]
    dtype: torch.dtype = torch.float32  # of the inputs
    matrix_dtype: torch.dtype = torch.float32  # of the products
    extra_bytes: int = 0  # beyond the inputs, of outputs and scratch


@dataclass(frozen=True)
class Case:
    """One op at one shape: its inputs, the ways to call it, and what is right."""

    op: str
    shape: Shape
    inputs: Inputs  # float32, where the case runs
    oracle: Callable[[Inputs], Oracle]
    variants: tuple[Variant, ...]  # the first is the plain call; the baselines are held to it


@dataclass(frozen=True)
class Contender:
    """Whatever is timed in a case: a variant on a backend, or a baseline."""

    name: str  # of the backend or the baseline
    variant: str
    prepare: Callable[[Inputs], Call]
    bounds: tuple[Bound, ...]
    work: Work
    dtype: torch.dtype = torch.float32
    matrix_dtype: torch.dtype = torch.float32
    extra_bytes: int = 0
    is_ours: bool = True
    can_be_captured: bool = True  # in a CUDA graph

    @property
    def label(self) -> str:
        """Unique within a case."""
        return f"{self.name}/{self.variant}"


def unit_rows(seed: int, *sizes: int) -> Tensor:
    """L2-normalised Gaussian rows, drawn on the CPU so that every device has the same ones."""
    return normalize(torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)), dim=-1)
