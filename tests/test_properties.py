"""What holds for every input, whatever the oracle says: sums, symmetries, scales, ranks, gradients.

Examples are drawn by Hypothesis, 20 a property on every run and 5,000 under SWAV_TESTS_DEEP=1.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from compare import ROW_SUM_BOUND, generator, largest, sinkhorn_bound, value_and_gradients
from gloo import StandingRanks
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Batch, Problem, batches, examples, problems, seeds, sizes
from torch import Tensor

import swav_kernels as sk

on_sinkhorn = pytest.mark.op("sinkhorn")
some = examples(quick=20, deep=5000, interpreted=5)


def permutation(size: int, seed: int) -> Tensor:
    """A seeded permutation of so many rows."""
    return torch.randperm(size, generator=generator(seed))


def loss_bound(value: float, batch: Batch) -> float:
    """What rounding costs the loss, the float32 codes among it."""
    rounding = 2e-6 + 2.0**-21 / batch.epsilon  # of the codes, each times a log-probability
    return 2e-6 * abs(value) + (rounding + 2.0**-21) * 2 / batch.temperature


# --- the codes ------------------------------------------------------------------------------------


@on_sinkhorn
@some
@given(problem=problems(), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_rows_sum_to_one(backend: str, device: str, problem: Problem, dtype: torch.dtype) -> None:
    codes = sk.sinkhorn(problem.scores(dtype).to(device), backend=backend, **problem.settings())
    assert codes.min() >= 0
    assert largest(codes.double().sum(-1) - 1) <= ROW_SUM_BOUND


@on_sinkhorn
@some
@given(
    # an iteration contracts by tanh(max|s| / epsilon)^2, whatever the scores: 40 by 1e-9 and more
    problem=problems(kinds=("cosines", "spread", "one-hot", "ties"), most=1.0),
    ratio=st.floats(0.001, 1.0),
    power=st.floats(0.0, 1.0),
)
def test_columns_reach_their_marginals(
    backend: str, device: str, problem: Problem, ratio: float, power: float
) -> None:
    k, scores = problem.num_prototypes, problem.scores()
    epsilon = max(largest(scores), 1e-6) / ratio
    shares = torch.arange(1, k + 1) ** -power  # Zipf's law; power 0 is equal shares
    codes = sk.sinkhorn(
        scores.to(device), 40, epsilon, backend=backend,
        prototype_weights=shares.to(device) if power else None,
    )  # fmt: skip
    wanted = shares / shares.sum()
    torch.testing.assert_close(codes.mean(0).cpu(), wanted, rtol=2e-5, atol=0)


@on_sinkhorn
@some
@given(problem=problems(), seed=seeds())
def test_permuted_samples_and_prototypes_have_permuted_codes(
    backend: str, device: str, problem: Problem, seed: int
) -> None:
    scores = problem.scores().to(device)
    rows = permutation(problem.num_samples, seed).to(device)
    columns = permutation(problem.num_prototypes, seed + 1).to(device)
    codes = sk.sinkhorn(scores, backend=backend, **problem.settings())
    moved = sk.sinkhorn(scores[rows][:, columns], backend=backend, **problem.settings())
    error = largest(moved - codes[rows][:, columns])
    assert error <= 2 * sinkhorn_bound(scores, problem.epsilon)


@on_sinkhorn
@some
@given(problem=problems(most=8.0), steps=st.integers(-512, 512), per_prototype=st.booleans())
def test_shifts_of_all_scores_or_of_a_prototype_change_nothing(
    backend: str, device: str, problem: Problem, steps: int, per_prototype: bool
) -> None:
    # multiples of 1/256 below 2^15, so that shifting rounds nothing
    scores = (problem.scores() * 256).round() / 256
    shift = torch.full((problem.num_prototypes,), steps / 64)
    if per_prototype:
        shift = shift * torch.linspace(-1, 1, problem.num_prototypes).mul(8).round() / 8
    shifted = scores + shift
    finite = scores.isfinite()
    assert torch.equal((shifted - shift)[finite], scores[finite])
    codes = sk.sinkhorn(scores.to(device), backend=backend, **problem.settings())
    moved = sk.sinkhorn(shifted.to(device), backend=backend, **problem.settings())
    bound = sinkhorn_bound(scores, problem.epsilon) + sinkhorn_bound(shifted, problem.epsilon)
    assert largest(moved - codes) <= bound


@on_sinkhorn
@some
@given(problem=problems(), power=st.integers(-20, 20), factor=st.floats(0.1, 10.0))
def test_scores_and_epsilon_have_one_scale(
    backend: str, device: str, problem: Problem, power: int, factor: float
) -> None:
    def codes(scores: Tensor, epsilon: float) -> Tensor:
        return sk.sinkhorn(scores.to(device), problem.iterations, epsilon, backend=backend).cpu()

    scores, epsilon = problem.scores(), problem.epsilon
    plain = codes(scores, epsilon)
    # a power of two rounds nothing but the smallest numbers
    scaled = codes(scores * 2.0**power, epsilon * 2.0**power)
    assert torch.equal(scaled, plain)
    scaled = codes(scores * factor, epsilon * factor)
    assert largest(scaled - plain) <= 3 * sinkhorn_bound(scores, epsilon)


@on_sinkhorn
@some
@given(problem=problems(), count=st.integers(1, 4), seed=seeds())
def test_problems_at_once_are_problems_one_by_one(
    backend: str, device: str, problem: Problem, count: int, seed: int
) -> None:
    scores = problem.scores().to(device)
    together = torch.stack(
        [scores[permutation(problem.num_samples, seed + i).to(device)] for i in range(count)]
    )
    together[-1] = together[-1] / 3  # another range, which may take another path
    for op in (sk.sinkhorn, sk.sinkhorn_potentials):
        results = op(together, backend=backend, **problem.settings())
        for one, got in zip(together, results, strict=True):
            assert torch.equal(got, op(one, backend=backend, **problem.settings()))


@on_sinkhorn
@some
@given(problem=problems(), seed=seeds())
def test_equal_samples_have_equal_codes(
    backend: str, device: str, problem: Problem, seed: int
) -> None:
    scores = problem.scores().to(device)
    rows = torch.randint(problem.num_samples, (problem.num_samples,), generator=generator(seed))
    repeated = scores[rows.to(device)]
    codes = sk.sinkhorn(repeated, backend=backend, **problem.settings())
    for row in rows.unique():
        same = codes[(rows == row).to(device)]
        assert largest(same - same[:1]) <= 2 * sinkhorn_bound(scores, problem.epsilon)


# --- the queue ------------------------------------------------------------------------------------


@some
@given(batch=batches(), seed=seeds())
def test_where_a_row_stands_in_the_queue_does_not_matter(
    backend: str, device: str, batch: Batch, seed: int
) -> None:
    assume(batch.queue_length)
    features, prototypes = batch.features().to(device), batch.prototypes().to(device)
    queue = batch.queue().to(device)

    def loss(queue: Tensor) -> float:
        return sk.swav_loss(
            features, prototypes, queue=queue, backend=backend, **batch.settings()
        ).item()

    plain = loss(queue)
    rows = permutation(batch.queue_length, seed).to(device)
    assert abs(loss(queue[:, rows]) - plain) <= loss_bound(plain, batch)

    buffer = sk.FeatureQueue(batch.queue_length, batch.dim, len(batch.assign)).to(device)
    position = seed % batch.queue_length  # the ring has turned that far when the rows come
    for part in (torch.zeros_like(queue[:, :position]), queue):
        buffer.update(part)
    assert abs(loss(buffer.rows()) - plain) <= loss_bound(plain, batch)


@some
@given(batch=batches())
def test_the_queue_is_rows_of_the_sinkhorn(backend: str, device: str, batch: Batch) -> None:
    assume(batch.queue_length)
    features, prototypes = batch.features().to(device), batch.prototypes().to(device)
    queue, crops = batch.queue().to(device), list(batch.assign)
    keywords = {"backend": backend, **batch.sinkhorn()}
    joined = torch.cat([features[crops], queue], 1) @ prototypes.T
    codes = sk.sinkhorn(joined, **keywords)[:, : batch.num_samples]
    f = sk.swav_potentials(features[crops], prototypes, queue=queue, **keywords)
    logits = joined[:, : batch.num_samples] / batch.epsilon + f.unsqueeze(1)
    # both round scores that were themselves rounded to float32
    bound = 4e-6 + 2.0**-20 / batch.epsilon
    assert largest(torch.softmax(logits, -1) - codes) <= bound


# --- the gradient ---------------------------------------------------------------------------------


@some
@given(batch=batches())
def test_the_teacher_is_detached(backend: str, device: str, batch: Batch) -> None:
    features, prototypes = batch.features().to(device), batch.prototypes().to(device)
    queue = None if batch.queue() is None else batch.queue().to(device)
    crops, keywords = list(batch.assign), {"backend": backend}
    f = sk.swav_potentials(features[crops], prototypes, queue=queue, **batch.sinkhorn(), **keywords)
    scores = features[crops] @ prototypes.T
    codes = torch.softmax(scores / batch.epsilon + f.unsqueeze(1), -1).requires_grad_()

    def composed(z: Tensor, c: Tensor) -> Tensor:
        return sk.swapped_cross_entropy(
            sk.prototype_scores(z, c, **keywords), codes, batch.temperature, assign=batch.assign,
            **keywords,
        )  # fmt: skip

    def fused(z: Tensor, c: Tensor) -> Tensor:
        return sk.swav_loss(z, c, queue=queue, **batch.settings(), **keywords)

    loss, gradients = value_and_gradients(fused, features, prototypes)
    wanted, wanted_gradients = value_and_gradients(composed, features, prototypes)
    assert abs(loss - wanted) <= loss_bound(wanted.item(), batch)
    # of d_scores, at most 2 in a row of a pair, before p and q cancel each other
    scale = 2 / batch.temperature / batch.num_crops
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert largest(got - want) <= (4e-6 + 2.0**-20 / batch.epsilon) * scale


@some
@given(problem=problems(most=10.0), weighted=st.booleans())
def test_neither_teacher_codes_nor_weights_get_a_gradient(
    backend: str, device: str, problem: Problem, weighted: bool
) -> None:
    scores = problem.scores().to(device)
    codes = sk.sinkhorn(scores, backend=backend, **problem.settings()).requires_grad_()
    weights = torch.rand(problem.num_samples, device=device).requires_grad_() if weighted else None
    student = (scores / 2).nan_to_num(neginf=-3.0).requires_grad_()
    sk.prototype_cross_entropy(student, codes, weights=weights, backend=backend).backward()
    assert student.grad.isfinite().all()
    assert codes.grad is None
    assert weights is None or weights.grad is None


@some
@given(batch=batches(), seed=seeds())
def test_permuted_inputs_have_permuted_gradients(
    backend: str, device: str, batch: Batch, seed: int
) -> None:
    features, prototypes = batch.features().to(device), batch.prototypes().to(device)
    queue = None if batch.queue() is None else batch.queue().to(device)
    rows = permutation(batch.num_samples, seed).to(device)
    columns = permutation(batch.num_prototypes, seed + 1).to(device)

    def loss(z: Tensor, c: Tensor) -> Tensor:
        return sk.swav_loss(z, c, queue=queue, backend=backend, **batch.settings())

    value, (d_z, d_c) = value_and_gradients(loss, features, prototypes)
    moved, (moved_z, moved_c) = value_and_gradients(
        loss, features[:, rows].contiguous(), prototypes[columns]
    )
    assert abs(moved - value) <= loss_bound(value.item(), batch)
    bound = (4e-6 + 2.0**-20 / batch.epsilon) * 2 / batch.temperature / batch.num_crops
    assert largest(moved_z - d_z[:, rows]) <= bound
    assert largest(moved_c - d_c[columns]) <= bound


# --- ranks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingRanks]:
    """Four processes that stay for all examples."""
    with StandingRanks(4, tmp_path_factory.mktemp("ranks")) as ranks:
        ranks.run(make_groups)
        yield ranks


groups: dict[int, dist.ProcessGroup] = {}  # of each rank: the first so many of them


def make_groups(rank: int) -> None:
    for world_size in (1, 2, 4):
        groups[world_size] = dist.new_group(range(world_size))


def codes_of_rank(
    rank: int, name: str, shares: list[int], problem: Problem, weighted: bool, bounded: bool
) -> np.ndarray | None:
    """The codes of the rank's rows, without torch's shared memory; None outside of the group."""
    if rank >= len(shares):
        return None
    keywords = rank_keywords(name, problem, weighted, bounded)
    if weighted:
        keywords["sample_weights"] = keywords["sample_weights"].split(shares)[rank]
    scores = problem.scores().split(shares)[rank]
    return sk.sinkhorn(scores, group=groups[len(shares)], **keywords).numpy()


def rank_keywords(name: str, problem: Problem, weighted: bool, bounded: bool) -> dict[str, Any]:
    """Keywords of `sinkhorn` for all rows."""
    keywords = {"backend": name, **problem.settings()}
    if weighted:
        keywords["sample_weights"] = torch.linspace(0.5, 1, problem.num_samples)
        keywords["prototype_weights"] = torch.linspace(1, 2, problem.num_prototypes)
    if bounded:
        keywords["score_bound"] = problem.magnitude + 0.1
    return keywords


@pytest.mark.parametrize("name", [x for x in ("reference", "cpu") if x in sk.available_backends()])
@some
@given(
    problem=problems(most=10.0, num_samples=sizes(4, 48)),
    cuts=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    weighted=st.booleans(),
    bounded=st.booleans(),
)
def test_any_number_of_ranks_gives_the_codes_of_one(
    four_ranks: StandingRanks, name: str, problem: Problem, cuts: list[float], weighted: bool,
    bounded: bool,
) -> None:  # fmt: skip
    n = problem.num_samples
    codes = {}  # by the number of ranks
    for world_size in (1, 2, 4):
        marks = [0, *sorted(int(cut * n) for cut in cuts[: world_size - 1]), n]
        shares = [end - begin for begin, end in pairwise(marks)]  # ranks without rows among them
        parts = four_ranks.run(codes_of_rank, name, shares, problem, weighted, bounded)
        codes[world_size] = torch.from_numpy(np.concatenate(parts[:world_size]))
        assert codes[world_size].shape == (n, problem.num_prototypes)
    alone = sk.sinkhorn(problem.scores(), **rank_keywords(name, problem, weighted, bounded))
    for together in codes.values():
        error = largest(together - alone)
        assert error <= 2 * sinkhorn_bound(problem.scores(), problem.epsilon)
