"""What the property tests and the fuzz draw: a few numbers that shrink and name a whole input.

Hypothesis prints the `Problem` or `Batch` of a failure at its smallest; `problem.scores()` makes
the same tensor again, alone.
"""

from dataclasses import dataclass

import torch
from compare import generator, unit_rows
from conftest import INTERPRETED
from depth import DEEP, count
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

TILES = tuple(2**power for power in range(13))
PRIMES = (3, 5, 11, 13, 37, 61, 67, 131, 251, 521, 1021, 1031, 2039, 2053, 4093)
EDGES = sorted({*PRIMES, *(tile + step for tile in TILES for step in (-1, 0, 1))})
LAYOUTS = ("contiguous", "offset", "padded rows", "every second", "transposed", "expanded")
KINDS = (
    "cosines",
    "spread",
    "dominating row",
    "dominating column",
    "one-hot",
    "opposite",
    "ties",
    "masked",
)


def examples(quick: int, deep: int, interpreted: int) -> settings:
    """So many examples: the same ones on every run, others each time under SWAV_TESTS_DEEP=1.

    A share of `interpreted` / `quick` of both counts if Triton is interpreted.
    """
    number = count(quick, deep)
    return settings(
        max_examples=number * interpreted // quick if INTERPRETED else number,
        derandomize=not DEEP,
        print_blob=True,
        deadline=None,
        database=None,
        # `device` is the same for all examples; a large shape takes long to make
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def sizes(least: int, most: int) -> st.SearchStrategy[int]:
    """Sizes around tiles and prime ones, and any other."""
    edges = [size for size in EDGES if least <= size <= most]
    anywhere = st.integers(least, most)
    return st.sampled_from(edges) | anywhere if edges else anywhere


SMALL = sizes(1, 40)
FEW_ITERATIONS = st.sampled_from((3, 1, 2, 4))
# a sweep costs an interpreter a hundredth of a second
ITERATIONS = FEW_ITERATIONS if INTERPRETED else FEW_ITERATIONS | st.sampled_from((6, 10, 40))


def epsilons() -> st.SearchStrategy[float]:
    """Smoothings from 0.002 to 1, those in use among them."""
    return st.sampled_from((0.05, 0.03, 0.002, 0.01, 0.1, 1.0)) | st.floats(0.002, 1.0)


def magnitudes(most: float) -> st.SearchStrategy[float]:
    """Largest |score|, over all powers of ten up to `most`."""
    powers = [x for x in (1.0, 0.0, 1e-6, 0.1, 10.0, 100.0, 1e3, 1e4) if x <= most]
    return st.sampled_from(powers) | st.floats(0, most)


@dataclass(frozen=True)
class Problem:
    """Scores [N, K] of one kind, whose largest magnitude is given, and how to balance them."""

    kind: str
    num_samples: int
    num_prototypes: int
    magnitude: float
    epsilon: float
    iterations: int
    seed: int

    def scores(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The scores [N, K], rounded to dtype."""
        n, k, g = self.num_samples, self.num_prototypes, generator(self.seed)
        scores = 2 * torch.rand(n, k, generator=g, dtype=torch.float64) - 1
        row = torch.randint(max(n, 1), (), generator=g)
        column = torch.randint(k, (), generator=g)
        if self.kind == "cosines":
            scores = unit_rows(n, 16, seed=self.seed) @ unit_rows(k, 16, seed=self.seed + 1).T
        elif self.kind == "dominating row" and n:
            scores[row] = 20 + scores[row]
        elif self.kind == "dominating column":
            scores[:, column] = 20 + scores[:, column]
        elif self.kind == "one-hot":
            scores = torch.eye(k, dtype=torch.float64)[torch.randint(k, (n,), generator=g)]
        elif self.kind == "opposite":
            scores = torch.sign(scores)
        elif self.kind == "ties":
            scores = (4 * scores).round()
        if scores.numel():
            scores = scores / scores.abs().max().clamp_min(1e-300) * self.magnitude
        if self.kind == "masked":
            mask = torch.rand(n, k, generator=g) < 0.3
            mask[torch.arange(n), torch.arange(n) % k] = False  # every row keeps a prototype
            scores = scores.masked_fill(mask, -torch.inf)
        return scores.to(dtype)

    def settings(self) -> dict[str, float]:
        """Keywords of `sinkhorn`."""
        return {"epsilon": self.epsilon, "iterations": self.iterations}


def problems(
    num_samples: st.SearchStrategy[int] = SMALL,
    num_prototypes: st.SearchStrategy[int] = SMALL,
    *,
    kinds: tuple[str, ...] = KINDS,
    most: float = 1e4,
    iterations: st.SearchStrategy[int] = ITERATIONS,
) -> st.SearchStrategy[Problem]:
    """Problems [N, K] in the range that the README promises digits or finite codes for."""
    return st.builds(
        Problem,
        kind=st.sampled_from(kinds),
        num_samples=num_samples,
        num_prototypes=num_prototypes,
        magnitude=magnitudes(most),
        epsilon=epsilons(),
        iterations=iterations,
        seed=seeds(),
    )


@dataclass(frozen=True)
class Batch:
    """Features [V, B, D], prototypes [K, D], a queue [A, L, D] and the settings of the loss."""

    num_crops: int
    num_samples: int
    dim: int
    num_prototypes: int
    queue_length: int
    assign: tuple[int, ...]
    temperature: float
    epsilon: float
    iterations: int
    seed: int

    def features(self) -> Tensor:
        """Float32 unit rows [V, B, D] whose crops resemble each other."""
        centre = unit_rows(1, self.num_samples, self.dim, seed=self.seed)
        noise = unit_rows(self.num_crops, self.num_samples, self.dim, seed=self.seed + 1)
        return torch.nn.functional.normalize(centre + 0.5 * noise, dim=-1).float()

    def prototypes(self) -> Tensor:
        """Float32 unit rows [K, D]."""
        return unit_rows(self.num_prototypes, self.dim, seed=self.seed + 2, dtype=torch.float32)

    def queue(self) -> Tensor | None:
        """Float32 unit rows [A, L, D]; None for L = 0."""
        if self.queue_length == 0:
            return None
        sizes = (len(self.assign), self.queue_length, self.dim)
        return unit_rows(*sizes, seed=self.seed + 3, dtype=torch.float32)

    def settings(self) -> dict[str, object]:
        """Keywords of `swav_loss`."""
        return {"temperature": self.temperature, **self.sinkhorn(), "assign": self.assign}

    def sinkhorn(self) -> dict[str, float]:
        """Those of `sinkhorn` among them."""
        return {"epsilon": self.epsilon, "iterations": self.iterations}


@st.composite
def batches(
    draw: st.DrawFn,
    num_samples: st.SearchStrategy[int] = SMALL,
    num_prototypes: st.SearchStrategy[int] = SMALL,
    dims: st.SearchStrategy[int] = SMALL,
    iterations: st.SearchStrategy[int] = ITERATIONS,
) -> Batch:
    """Batches of unit rows: what training sees, at any size."""
    num_crops = draw(st.integers(2, 4))
    assign = st.permutations(range(num_crops)).flatmap(
        lambda crops: st.integers(1, min(3, num_crops)).map(lambda n: tuple(crops[:n]))
    )
    return Batch(
        num_crops=num_crops,
        num_samples=draw(num_samples),
        dim=draw(dims),
        num_prototypes=draw(num_prototypes),
        queue_length=draw(st.just(0) | sizes(1, 40)),
        assign=draw(st.just((0, 1)) | assign),
        temperature=draw(st.sampled_from((0.1, 0.07, 1.0)) | st.floats(0.03, 2.0)),
        epsilon=draw(st.sampled_from((0.05, 0.03, 0.01, 1.0)) | st.floats(0.01, 1.0)),
        iterations=draw(iterations),
        seed=draw(seeds()),
    )


def seeds() -> st.SearchStrategy[int]:
    """Seeds of the numbers."""
    return st.integers(0, 2**20)


def stored(values: Tensor, layout: str) -> Tensor:
    """The values [..., n, k] in a storage of that layout; "expanded" repeats the first row."""
    if layout == "offset":  # by 3 numbers, so that nothing is aligned
        storage = torch.full((values.numel() + 3,), torch.nan).to(values)
        return storage[3:].view(values.shape).copy_(values)
    if layout == "padded rows":
        storage = torch.full((*values.shape[:-1], values.shape[-1] + 5), torch.nan).to(values)
        return storage[..., : values.shape[-1]].copy_(values)
    if layout == "every second":
        storage = torch.full((*values.shape[:-1], 2 * values.shape[-1]), torch.nan).to(values)
        return storage[..., ::2].copy_(values)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return values[..., :1, :].expand(values.shape)
    return values
