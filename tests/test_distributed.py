"""Process groups on Gloo: the whole batch's codes on every rank, however its rows are spread."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from compare import assert_codes, assert_loss, crops, sinkhorn, swav_loss, unit_rows
from gloo import run_ranks
from torch import Tensor

import swav_kernels as sk

BACKENDS = [name for name in ("reference", "cpu") if name in sk.available_backends()]
on_each_backend = pytest.mark.parametrize("name", BACKENDS)


def rows_of(rank: int, tensor: Tensor, sizes: list[int]) -> Tensor:
    """The rank's share of the rows [N, ...]."""
    return tensor.split(sizes)[rank]


def cosines(num_samples: int = 256, num_prototypes: int = 37) -> Tensor:
    """Float32 scores [N, K]."""
    return (unit_rows(num_samples, 16, seed=1) @ unit_rows(num_prototypes, 16, seed=2).T).float()


def sinkhorn_of_rank(rank: int, sizes: list[int], keywords: dict[str, Any]) -> Tensor:
    group = dist.group.WORLD
    return sk.sinkhorn(rows_of(rank, cosines(sum(sizes)), sizes), group=group, **keywords)


@on_each_backend
@pytest.mark.parametrize(
    "sizes",
    [[64] * 4, [100, 156], [256, 0], [0, 1, 255, 0]],
    ids=lambda sizes: "+".join(map(str, sizes)),
)
def test_ranks_together_give_the_codes_of_the_whole_batch(
    name: str, sizes: list[int], tmp_path: Path
) -> None:
    codes = torch.cat(run_ranks(len(sizes), tmp_path, sinkhorn_of_rank, sizes, {"backend": name}))
    alone = sk.sinkhorn(cosines(), backend=name)
    assert (codes - alone).abs().max() <= 1e-6
    assert_codes(codes, sinkhorn(cosines().double()), cosines(), 0.05)


def options_of_rank(rank: int, name: str) -> dict[str, Tensor]:
    scores = rows_of(rank, cosines(), [100, 156])
    weights = rows_of(rank, torch.linspace(0, 1, 256), [100, 156])
    shares = torch.linspace(0, 1, 37)
    group = dist.group.WORLD
    problems = torch.stack([scores, -scores])
    f = sk.sinkhorn_potentials(scores, group=group, backend=name)
    return {
        "zero": sk.sinkhorn(scores, 0, 0.5, group=group, backend=name),
        "one": sk.sinkhorn(scores, 1, group=group, backend=name),
        "weights": sk.sinkhorn(
            scores, sample_weights=weights, prototype_weights=shares, group=group, backend=name
        ),
        "gather": sk.sinkhorn(scores, 3, 0.05, True, backend=name),
        "bound": sk.sinkhorn(scores, score_bound=1.0, group=group, backend=name),
        "sharp": sk.sinkhorn(scores, 3, 0.005, score_bound=1.0, group=group, backend=name),
        "batched": sk.sinkhorn(problems, group=group, backend=name)[1],
        "hard": sk.sinkhorn(scores, hard=True, group=group, backend=name),
        "potentials": torch.softmax(scores / 0.05 + f, -1),
        "local": sk.sinkhorn(scores, backend=name),
    }


@on_each_backend
def test_options_with_a_group(name: str, tmp_path: Path) -> None:
    ranks = run_ranks(2, tmp_path, options_of_rank, name)
    got = {key: torch.cat([rank[key] for rank in ranks]) for key in ranks[0]}
    scores, double = cosines(), cosines().double()
    e = (double / 0.5).exp()
    assert (got["zero"] - 256 * e / e.sum()).abs().max() <= 1e-6
    assert_codes(got["one"], sinkhorn(double, 1), scores, 0.05)
    weights = {
        "sample_weights": torch.linspace(0, 1, 256).double(),
        "prototype_weights": torch.linspace(0, 1, 37).double(),
    }
    assert_codes(got["weights"], sinkhorn(double, **weights), scores, 0.05)
    for key in ("gather", "bound", "potentials"):
        assert_codes(got[key], sinkhorn(double), scores, 0.05)
    assert_codes(got["sharp"], sinkhorn(double, 3, 0.005), scores, 0.005)
    assert_codes(got["batched"], sinkhorn(-double), scores, 0.05)
    assert torch.equal(got["hard"].double(), sinkhorn(double, hard=True))
    for rows, codes in zip(scores.split([100, 156]), got["local"].split([100, 156]), strict=True):
        assert torch.equal(codes, sk.sinkhorn(rows, backend=name))  # group=None stays local


def loss_of_rank(rank: int, name: str, sizes: list[int]) -> tuple[Any, ...]:
    features, prototypes = crops(3, sum(sizes), 16, 37)
    queue = unit_rows(2, 2 * 20, 16, seed=5, dtype=torch.float32)
    features = features.split(sizes, 1)[rank].requires_grad_()
    queue = queue.split(20, 1)[rank]
    loss, stats = sk.swav_loss(
        features, prototypes, queue=queue, group=dist.group.WORLD, return_stats=True, backend=name
    )
    loss.backward()
    f = sk.swav_potentials(
        features.detach()[:2], prototypes, queue=queue, group=dist.group.WORLD, backend=name
    )
    fixed = sk.swav_loss(features.detach(), prototypes, potentials=f, backend=name)
    return loss.detach(), fixed, features.grad, {key: float(x) for key, x in stats.items()}


@on_each_backend
@pytest.mark.parametrize("sizes", [[33, 33], [66, 0]])
def test_loss_of_the_ranks_averages_to_that_of_the_batch(
    name: str, sizes: list[int], tmp_path: Path
) -> None:
    ranks = run_ranks(2, tmp_path, loss_of_rank, name, sizes)
    features, prototypes = crops(3, 66, 16, 37)
    queue = unit_rows(2, 40, 16, seed=5, dtype=torch.float32)
    features = features.double().requires_grad_()
    wanted = swav_loss(features, prototypes.double(), queue=queue.double())
    (gradient,) = torch.autograd.grad(wanted, features)
    for rank, size in enumerate(sizes):
        loss, fixed, got, _ = ranks[rank]
        assert_loss(fixed, loss.double())
        share = gradient.split(sizes, 1)[rank] * 66 / max(size, 1)
        assert (got - share).abs().sum() <= 4e-6 * gradient.abs().sum() * 66 / max(size, 1)
    mean = sum(rank[0].double() * size for rank, size in zip(ranks, sizes, strict=True)) / 66
    assert_loss(mean, wanted)
    _, alone = sk.swav_loss(
        features.detach().float(), prototypes, queue=queue, return_stats=True, backend=name
    )
    for key, value in alone.items():
        for rank in ranks:
            assert rank[3][key] == pytest.approx(float(value), abs=1e-5), key


def poison_of_rank(rank: int, name: str, value: float) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.stack([cosines(8, 5), cosines(8, 5)])
    features, prototypes = crops(2, 4, 16, 5)
    if rank == 1:
        scores[1, 3, 2] = value
        features[0, 1, 2] = value
    group = dist.group.WORLD
    codes = sk.sinkhorn(scores, group=group, backend=name)
    bounded = sk.sinkhorn(scores, group=group, score_bound=1.0, backend=name)
    return codes, bounded, sk.swav_loss(features, prototypes, group=group, backend=name)


@on_each_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_bad_score_poisons_its_problem_on_all_ranks(
    name: str, value: float, tmp_path: Path
) -> None:
    for codes, bounded, loss in run_ranks(2, tmp_path, poison_of_rank, name, value):
        for q in (codes, bounded):
            assert q[0].isfinite().all()
            assert q[1].isnan().all()
        assert loss.isnan()


def check_finite_of_rank(rank: int, name: str) -> list[str]:
    scores = cosines(8, 5)
    scores[0] = -torch.inf  # a mask is no error
    messages = []
    for bad in (False, True):
        if bad and rank == 2:
            scores[5, 1] = torch.nan
        try:
            sk.sinkhorn(scores, group=dist.group.WORLD, check_finite=True, backend=name)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return messages


@on_each_backend
def test_check_finite_names_rank_and_row_on_all_ranks(name: str, tmp_path: Path) -> None:
    ranks = run_ranks(4, tmp_path, check_finite_of_rank, name)
    for before, after in ranks:
        assert before == ""
        assert "sinkhorn" in after
        assert "rank 2" in after
        assert "row 5" in after


def count_collectives(rank: int, name: str) -> dict[str, list[str]]:
    calls: list[str] = []
    all_reduce = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **keywords: Any) -> Any:
        calls.append(f"{list(tensor.shape)}")
        return all_reduce(tensor, *args, **keywords)

    dist.all_reduce = counting
    world = {"group": dist.group.WORLD, "backend": name}
    problems = torch.stack([cosines(8 * rank, 5)] * 2)  # rank 0 has no rows
    features, prototypes = crops(3, 8 * rank, 16, 5)
    counts = {}
    for key, call in {
        "plain": lambda: sk.sinkhorn(problems, **world),
        "bound": lambda: sk.sinkhorn(problems, score_bound=1.0, **world),
        "loss": lambda: sk.swav_loss(features, prototypes, **world),
        "stats": lambda: sk.swav_loss(features, prototypes, return_stats=True, **world),
        "fixed": lambda: sk.swav_loss(
            features, prototypes, potentials=torch.zeros(2, 5), backend=name
        ),
        "check": lambda: sk.sinkhorn(problems, check_finite=True, **world),
        "none": lambda: sk.sinkhorn(problems, backend=name),
    }.items():
        calls.clear()
        call()
        counts[key] = list(calls)
    return counts


@on_each_backend
def test_collectives_are_few_and_do_not_depend_on_the_data(name: str, tmp_path: Path) -> None:
    first, second = run_ranks(2, tmp_path, count_collectives, name)
    assert first == second
    messages = {key: len(calls) for key, calls in first.items()}
    # T = 3 sums of [A, K] and one maximum, which a known bound saves
    assert messages == {
        "plain": 4, "bound": 3, "loss": 4, "stats": 5, "fixed": 0, "check": 5, "none": 0,
    }  # fmt: skip
    assert set(first["plain"]) == {"[2, 5]"}


def warnings_of_rank(rank: int, name: str) -> list[str]:
    features, prototypes = crops(2, 4, 16, 5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sk.swav_loss(features, prototypes, group=dist.group.WORLD, backend=name)
        assert not caught
        for _ in range(3):
            sk.swav_loss(features, prototypes, backend=name)
    return [str(warning.message) for warning in caught]


@on_each_backend
def test_losses_warn_once_when_no_group_is_named(name: str, tmp_path: Path) -> None:
    for messages in run_ranks(2, tmp_path, warnings_of_rank, name):
        assert len(messages) == 1
        assert "group" in messages[0]
        assert "swav_loss" in messages[0]


def refusals_of_rank(rank: int) -> list[str]:
    others = [dist.new_group([0]), dist.new_group([1])]
    messages = []
    for keywords in (
        {"group": dist.group.WORLD, "gather_distributed": True},
        {"group": others[1 - rank]},
    ):
        try:
            sk.sinkhorn(cosines(8, 5), **keywords)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    own = sk.sinkhorn(cosines(8, 5), group=others[rank])
    assert (own - sk.sinkhorn(cosines(8, 5))).abs().max() <= 1e-6
    return messages


def test_groups_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for both, foreign in run_ranks(2, tmp_path, refusals_of_rank):
        assert "gather_distributed" in both
        assert "group" in foreign
