"""Drop-ins against the formula of each code base, in one process and over Gloo ranks."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compare import swapped_cross_entropy, unit_rows
from field import ALONE, DROPS, EPSILON, Drop, exponentials, shares_in_turn, with_eps
from gloo import run_ranks
from torch import Tensor

from swav_kernels.compat import bolts, capi, dino, lightly, mmpretrain, official, solo_learn, vissl

N, K = 67, 19
ITERATIONS = (0, 1, 3)  # T = 0 is another function in each code base
SIZES = [20, 0, 46, 1]  # ragged ranks, one of them empty


def cosines(n: int = N, k: int = K, seed: int = 1) -> Tensor:
    """Float32 scores [N, K]."""
    return (unit_rows(n, 16, seed=seed) @ unit_rows(k, 16, seed=seed + 1).T).float()


def assert_codes(got: Tensor, wanted: Tensor, bound: float = 1e-6) -> None:
    """Within a relative bound for what may exceed 1: exponentials of no iterations."""
    assert got.shape == wanted.shape
    assert not got.requires_grad
    error = (got.double() - wanted).abs() / wanted.abs().clamp_min(1)
    assert error.max() <= bound


# --- codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", ITERATIONS)
@pytest.mark.parametrize("drop", [*DROPS.values(), *ALONE.values()], ids=[*DROPS, *ALONE])
def test_codes_in_one_process(drop: Drop, iterations: int) -> None:
    scores = cosines().requires_grad_()
    codes = drop.call(scores, iterations)
    assert codes.dtype == torch.float32
    # exponentials of 50 and the like round at float32's relative step, times 2 / epsilon
    assert_codes(codes.detach(), drop.oracle(cosines(), iterations), 1e-6 if iterations else 4e-6)


def codes_of_rank(rank: int) -> dict[tuple[str, int], Tensor]:
    scores = cosines().split(SIZES)[rank]
    codes = {(name, t): drop.call(scores, t) for name, drop in DROPS.items() for t in ITERATIONS}
    for name, drop in ALONE.items():
        for t in ITERATIONS:
            codes[f"{name} alone", t] = drop.call(scores, t)
    return codes


def test_codes_over_ranks_are_those_of_all_their_rows(tmp_path: Path) -> None:
    ranks = run_ranks(4, tmp_path, codes_of_rank)
    for (name, iterations), _ in ranks[0].items():
        got = torch.cat([rank[name, iterations] for rank in ranks])
        bound = 1e-6 if iterations else 4e-6
        if name.endswith(" alone"):
            oracle = ALONE[name.removesuffix(" alone")].oracle
            parts = [oracle(rows, iterations) for rows in cosines().split(SIZES) if len(rows)]
            assert_codes(got, torch.cat(parts), bound)
        else:
            assert_codes(got, DROPS[name].oracle(cosines(), iterations), bound)


def test_mmpretrain_with_sums_of_a_rank_would_differ() -> None:
    # the fault that is not reproduced: what the test above would have to give
    wanted = shares_in_turn(cosines(), 3)
    faulty = torch.cat([shares_in_turn(rows, 3) for rows in cosines().split([20, 47])])
    assert (faulty - wanted).abs().max() > 0.05


@pytest.mark.parametrize("iterations", ITERATIONS)
def test_positions_of_lightly_capi_are_problems_of_their_own(iterations: int) -> None:
    logits = torch.stack([cosines(seed=seed) for seed in (1, 5, 9)], 1) / EPSILON  # [B, S, K]
    for strict in (False, True):
        codes = lightly.capi_sinkhorn_knopp(logits, iterations, strict=strict, epsilon=1e-3)
        assert codes.shape == logits.shape
        for position in range(3):
            eps = 1e-3 if strict else 0.0
            wanted = with_eps(logits[:, position] * EPSILON, iterations, eps, largest=0.0)
            assert_codes(codes[:, position], wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_are_those_of_the_originals(dtype: torch.dtype) -> None:
    scores = cosines().to(dtype)
    step = max(torch.finfo(dtype).eps, 1e-12)
    wanted = shares_in_turn(scores, 3)
    for codes in (
        official.distributed_sinkhorn(scores),
        lightly.sinkhorn(scores),
        solo_learn.SinkhornKnopp()(scores),
        mmpretrain.distributed_sinkhorn(scores, 3, 1, 0.05),
    ):
        assert codes.dtype == dtype
        assert_codes(codes, wanted, step)  # rounded once, in the end
    for codes in (
        dino.sinkhorn_knopp_teacher(None, scores, 0.05),
        dino.ibot_sinkhorn_knopp_teacher(None, scores, 0.05, torch.tensor(N)),
    ):
        assert codes.dtype == torch.float32
        assert_codes(codes, wanted)
    double = exponentials(scores.double())
    for codes in (
        vissl.distributed_sinkhornknopp(double, 3, False, 1, True, False),
        bolts.sinkhorn(None, double, 3),
    ):
        assert codes.dtype == torch.float32
        assert_codes(codes, wanted)
    for strict in (False, True):
        logits = scores.double().div(0.05).to(dtype).unsqueeze(1)
        codes = lightly.capi_sinkhorn_knopp(logits, strict=strict, epsilon=0.0)
        assert codes.dtype == dtype
        assert_codes(codes.squeeze(1), with_eps(logits.squeeze(1).double() * 0.05, 3, 0.0), step)
    assert lightly.msn_sinkhorn(scores.div(0.05).softmax(1)).dtype == dtype


def test_autocast_gives_float32_codes_where_it_does_so_for_exp() -> None:
    scores = cosines().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lightly.sinkhorn(scores).dtype == scores.exp().dtype


@pytest.mark.parametrize("shift", [0.0, 60.0])
def test_exponentials_of_any_scale_and_with_zeros(shift: float) -> None:
    scores = cosines()
    scores[:, 4] = -torch.inf  # a prototype that nobody has: 0 / 0 in the originals
    scores[3, 2:] = -torch.inf
    q = (scores / EPSILON - shift).exp()
    wanted = shares_in_turn(scores[:, torch.arange(K) != 4], 3)
    for codes in (
        vissl.distributed_sinkhornknopp(q.t(), 3, False, 1, False, False),
        bolts.sinkhorn(None, q.t(), 3),
        lightly.msn_sinkhorn(q),
    ):
        assert (codes[:, 4] == 0).all()
        # logarithms near -80 round by 2^-18 of a code
        assert_codes(codes[:, torch.arange(K) != 4], wanted, 4e-6)


def test_an_infinite_exponential_is_never_a_plausible_code() -> None:
    q = exponentials(cosines())
    q[2, 5] = torch.inf
    assert vissl.distributed_sinkhornknopp(q, 3, False, 1, False, False).isnan().all()
    assert bolts.sinkhorn(None, q, 3).isnan().all()


# --- what callers see of their arguments --------------------------------------------------------


@pytest.mark.parametrize("drop", [*DROPS.values(), *ALONE.values()], ids=[*DROPS, *ALONE])
def test_scores_and_exponentials_are_left_as_they_are(drop: Drop) -> None:
    scores = cosines()
    drop.call(scores, 3)  # all but CAPI's, which is given a temporary
    assert torch.equal(scores, cosines())
    q = exponentials(scores)
    before = q.clone()
    vissl.distributed_sinkhornknopp(q, 3, False, 1, False, False)
    bolts.sinkhorn(None, q, 3)
    lightly.msn_sinkhorn(q.t())
    assert torch.equal(q, before)


def test_msn_without_iterations_gives_its_argument() -> None:
    probabilities = cosines().softmax(1)
    assert lightly.msn_sinkhorn(probabilities, 0) is probabilities
    assert lightly.msn_sinkhorn(probabilities, -1) is probabilities


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "positions first", "one problem", "half"])
def test_capi_writes_its_codes_over_its_argument(layout: str, strict: bool) -> None:
    logits = torch.stack([cosines(seed=seed) for seed in (1, 5)]) / EPSILON  # [S, N, K]
    if layout == "positions first":
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "one problem":
        logits = logits[0]
    elif layout == "half":
        logits = logits.half()
    wanted = with_eps(logits.double() * EPSILON, 3)
    codes = capi.sinkhorn_knopp(logits, 3, strict=strict)
    assert codes is logits
    assert_codes(codes, wanted, 5e-4 if layout == "half" else 1e-6)


def test_capi_strict_alone_has_rows_of_zeros() -> None:
    logits = torch.zeros(3, 2)
    logits[2] -= 300  # far below the maxima of both prototypes
    assert (capi.sinkhorn_knopp(logits.clone(), 3, strict=True)[2] == 0).all()
    codes = capi.sinkhorn_knopp(logits.clone(), 3)
    assert_codes(codes, torch.full((3, 2), 0.5).double())


def count_of_rank(rank: int) -> tuple[int, int, bool]:
    scores = cosines().split(SIZES)[rank]
    count = torch.tensor(len(scores))
    dino.ibot_sinkhorn_knopp_teacher(None, scores, 0.05, count)
    module_count = torch.tensor([float(len(scores))])
    dino.SinkhornKnoppTeacher()(scores, 0.05, module_count)
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own_count = torch.tensor(len(scores))
    codes = dino.SinkhornKnoppTeacher(group=halves[rank // 2])(scores, 0.05, own_count)
    wanted = shares_in_turn(cosines()[:20] if rank < 2 else cosines()[20:], 3)
    wanted = wanted if rank < 2 else wanted.split(SIZES[2:])[rank - 2]
    near = (codes - wanted[: len(codes)]).abs().max() <= 1e-6 if len(codes) else True
    return int(count), int(module_count), int(own_count), bool(near)


def test_ibot_counts_masked_patches_in_place(tmp_path: Path) -> None:
    count = torch.tensor(N)  # no process group: DINOv2 itself fails here
    codes = dino.ibot_sinkhorn_knopp_teacher(None, cosines(), 0.05, count)
    assert_codes(codes, shares_in_turn(cosines(), 3))
    assert count == N
    ranks = run_ranks(4, tmp_path, count_of_rank)
    assert ranks == [(N, N, 20, True)] * 2 + [(N, N, 47, True)] * 2


def groups_of_rank(rank: int) -> dict[str, Tensor]:
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group = halves[rank // 2]
    scores = cosines().split(SIZES)[rank]
    q = exponentials(scores)
    return {
        "official": official.distributed_sinkhorn(scores, group=group),
        "mmpretrain": mmpretrain.distributed_sinkhorn(scores, 3, 2, 0.05, group=group),
        "vissl": vissl.distributed_sinkhornknopp(q, 3, False, 2, False, False, group=group),
        "power law": vissl.distributed_sinkhorn_powerlaw(
            q, 3, 0.0, False, 2, False, False, group=group
        ),
        "bolts": bolts.distributed_sinkhorn(None, q, 3, group=group),
        "dino": dino.sinkhorn_knopp_teacher(None, scores, 0.05, group=group),
        "capi": capi.sinkhorn_knopp(scores / 0.05, 3, group=group),
        "strict": capi.sinkhorn_knopp(scores / 0.05, 3, group=group, strict=True),
    }


def test_a_named_group_is_what_is_summed_over(tmp_path: Path) -> None:
    ranks = run_ranks(4, tmp_path, groups_of_rank)
    for half, rows in ((ranks[:2], cosines()[:20]), (ranks[2:], cosines()[20:])):
        for name in half[0]:
            assert_codes(torch.cat([rank[name] for rank in half]), shares_in_turn(rows, 3))


def test_dino_takes_scores_beyond_the_range_of_exp() -> None:
    scores = cosines() * 20  # exp(20 / 0.05) is infinite in float32 and in float64
    codes = dino.sinkhorn_knopp_teacher(None, scores, torch.tensor(0.05))
    log_q = scores.double() / 0.05
    for _ in range(3):
        log_q = log_q - log_q.logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    assert_codes(codes, log_q.exp(), 1e-4)  # 2^-22 max|s| / epsilon


@pytest.mark.filterwarnings("ignore:Dynamo:UserWarning")
def test_dinov3_compiles_its_module() -> None:
    module = dino.SinkhornKnoppTeacher()
    module.compile()
    for n in (N, 31):  # another number of masked patches
        assert_codes(module(cosines(n), 0.05, torch.tensor(n)), shares_in_turn(cosines(n), 3))


# --- losses -----------------------------------------------------------------------------------


def views(count: int, n: int = 23) -> list[Tensor]:
    """Scores [N, K] of as many views."""
    return [cosines(n, seed=7 * view + 1).requires_grad_() for view in range(count)]


def assert_same_gradients(
    loss: Tensor, wanted: Callable[[list[Tensor]], Tensor], leaves: list[Tensor]
) -> None:
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    value = wanted(doubles)
    assert abs(loss.item() - value.item()) <= 1e-6 * value.item()
    got = torch.autograd.grad(loss, leaves)
    for gradient, exact in zip(got, torch.autograd.grad(value, doubles), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).abs().max() <= 4e-6 * exact.abs().max()


@pytest.mark.parametrize(("large", "small", "queued"), [(2, 0, 0), (2, 3, 0), (3, 1, 11)])
def test_lightly_loss_and_its_gradients(large: int, small: int, queued: int) -> None:
    leaves = views(large + small)
    queue = [cosines(queued, seed=70 + i) for i in range(large)] if queued else None

    def wanted(scores: list[Tensor]) -> Tensor:
        rows = [s.detach() if queue is None else torch.cat([s.detach(), queue[i].double()])
                for i, s in enumerate(scores[:large])]  # fmt: skip
        codes = torch.stack([shares_in_turn(r, 2)[:23] for r in rows])
        return swapped_cross_entropy(torch.stack(scores), codes, 0.2, range(large))

    loss = lightly.SwaVLoss(temperature=0.2, sinkhorn_iterations=2)(
        high_resolution_outputs=leaves[:large],
        low_resolution_outputs=leaves[large:],
        queue_outputs=queue,
    )
    assert loss.shape == (1,)
    assert_same_gradients(loss, wanted, leaves)


def test_lightly_loss_has_its_settings() -> None:
    loss = lightly.SwaVLoss(0.3, 1, 0.2, True)
    leaves = views(2)

    def wanted(scores: list[Tensor]) -> Tensor:
        codes = [shares_in_turn(s.detach() * EPSILON / 0.2, 1) for s in scores]
        return swapped_cross_entropy(torch.stack(scores), torch.stack(codes), 0.3)

    assert_same_gradients(loss(leaves, []), wanted, leaves)
    with pytest.raises(ValueError, match="2 crops"):
        loss(leaves[:1], [])


def test_solo_learn_loss_and_its_gradients() -> None:
    leaves = views(3)
    codes = [shares_in_turn(leaf.detach(), 3).float().requires_grad_() for leaf in leaves]

    def wanted(scores: list[Tensor]) -> Tensor:
        pairs = [(v, w) for v in range(3) for w in range(3) if v != w]
        terms = [
            -(codes[v].detach().double() * (scores[w] / 0.1).log_softmax(1)).sum(1).mean()
            for v, w in pairs
        ]
        return torch.stack(terms).mean()

    loss = solo_learn.swav_loss_func(preds=leaves, assignments=codes)
    assert loss.shape == ()
    assert_same_gradients(loss, wanted, leaves)
    assert not torch.equal(loss, solo_learn.swav_loss_func(leaves, codes, 0.2))


def loss_of_rank(rank: int, gather: bool) -> tuple[Tensor, list[tuple[str, str]]]:
    shares = [view.detach().split([10, 13])[rank] for view in views(3)]
    criterion = lightly.SwaVLoss(sinkhorn_gather_distributed=gather)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss, _ = (criterion(shares[:2], shares[2:]) for _ in range(2))
    said = [(Path(warning.filename).name, str(warning.message)) for warning in caught]
    return loss * len(shares[0]) / 23, said


@pytest.mark.parametrize("gather", [False, True])
def test_lightly_loss_over_ranks(gather: bool, tmp_path: Path) -> None:
    scores = torch.stack(views(3)).detach().double()
    parts = scores.split([23] if gather else [10, 13], 1)
    codes = torch.cat([torch.stack([shares_in_turn(s, 3) for s in part[:2]]) for part in parts], 1)
    wanted = swapped_cross_entropy(scores, codes)
    ranks = run_ranks(2, tmp_path, loss_of_rank, gather)
    loss = sum(float(share) for share, _ in ranks)
    assert abs(loss - float(wanted)) <= 1e-6 * float(wanted)
    for _, said in ranks:  # once, at the line of the call
        assert [file for file, _ in said] == ([] if gather else ["test_compat.py"])
        assert all("Pass sinkhorn_gather_distributed=True" in message for _, message in said)
