"""swav_potentials against the oracle on the materialised scores, compared through codes only."""

import pytest
import torch
from compare import assert_codes, assert_loss, crops, generator, largest, sinkhorn, unit_rows

import swav_kernels as sk


def test_own_potentials_reproduce_the_loss(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(4, 33, 16, 37))
    queue = unit_rows(2, 20, 16, seed=5, dtype=torch.float32).to(device)
    for rows, keywords in ((None, {}), (queue, {"queue": queue})):
        f = sk.swav_potentials(features[:2], prototypes, queue=rows, backend=backend)
        got = sk.swav_loss(features, prototypes, potentials=f, backend=backend)
        wanted = sk.swav_loss(features, prototypes, backend=backend, **keywords)
        assert_loss(got, wanted.double())


@pytest.mark.parametrize("length", [0, 20])
def test_swav_potentials_equal_those_of_the_scores(backend: str, device: str, length: int) -> None:
    features, prototypes = crops(2, 33, 16, 37)
    queue = unit_rows(2, length, 16, seed=5, dtype=torch.float32) if length else None
    weights = torch.rand(37, generator=generator(3)) + 0.1
    for iterations, epsilon, r in ((1, 0.03, None), (3, 0.05, None), (3, 0.05, weights)):
        f = sk.swav_potentials(
            features.to(device), prototypes.to(device), epsilon=epsilon, iterations=iterations,
            queue=None if queue is None else queue.to(device),
            prototype_weights=None if r is None else r.to(device), backend=backend,
        )  # fmt: skip
        assert f.shape == (2, 37)
        assert f.dtype == torch.float32
        rows = features if queue is None else torch.cat([features, queue], 1)
        scores = rows.double() @ prototypes.double().T
        codes = torch.softmax(scores / epsilon + f.double().cpu().unsqueeze(1), -1)
        for a in range(2):
            wanted = sinkhorn(
                scores[a], iterations, epsilon, prototype_weights=None if r is None else r.double()
            )
            # the scores themselves are rounded to float32, at most a few ulp of a cosine
            assert largest(codes[a] - wanted) <= 2e-6 + 2.0**-21 / epsilon


def test_normalize_covers_features_and_queue(backend: str, device: str) -> None:
    features, prototypes = (x.to(device) for x in crops(2, 33, 16, 37))
    queue = unit_rows(2, 20, 16, seed=5, dtype=torch.float32).to(device)
    lengths = torch.linspace(0.2, 4, 20, device=device).unsqueeze(1)
    wanted = sk.swav_potentials(features, prototypes, queue=queue, backend=backend)
    got = sk.swav_potentials(
        features * 3, prototypes, queue=queue * lengths, normalize=True, backend=backend
    )
    difference = got - wanted  # a constant a problem, which f leaves open
    assert largest(difference - difference.mean(-1, keepdim=True)) <= 1e-4


@pytest.mark.heavy
@pytest.mark.parametrize(("n", "k"), [(1, 300), (63, 2)])
def test_digits_of_swav_potentials_do_not_wear_off(
    backend: str, device: str, n: int, k: int
) -> None:
    features, prototypes = crops(1, n, 16, k)
    scores = features[0].double() @ prototypes.double().T
    for epsilon in (0.05, 0.005):
        f = sk.swav_potentials(
            features.to(device), prototypes.to(device), epsilon=epsilon, iterations=60,
            backend=backend,
        )  # fmt: skip
        codes = torch.softmax(scores / epsilon + f[0].double().cpu(), -1)
        wanted = sinkhorn(scores, 60, epsilon)
        assert largest(codes - wanted) <= 2e-6 + 2.0**-21 / epsilon


def test_swav_potentials_with_sample_weights_and_normalize(backend: str, device: str) -> None:
    features, prototypes = crops(2, 33, 16, 37)
    weights = torch.rand(2, 33, generator=generator(6))
    weights[0, 3] = 0
    f = sk.swav_potentials(
        3 * features.to(device), prototypes.to(device), normalize=True,
        sample_weights=weights.to(device), backend=backend,
    )  # fmt: skip
    scores = features.double() @ prototypes.double().T
    for a in range(2):
        codes = torch.softmax(scores[a] / 0.05 + f[a].double().cpu(), -1)
        assert_codes(codes, sinkhorn(scores[a], sample_weights=weights[a].double()), scores, 0.05)


@pytest.mark.heavy
@pytest.mark.parametrize("epsilon", [1 / 34.5, 1 / 34.8])
@pytest.mark.parametrize("num_rows", [5, 130])
def test_swav_potentials_of_opposite_features(
    backend: str, device: str, num_rows: int, epsilon: float
) -> None:
    """Scores of 1 and of -1 in every row and column, about where logarithms take over."""
    base = unit_rows(7, 16)
    prototypes = torch.cat([base, -base, unit_rows(300, 16, seed=1)]).float()
    features = torch.cat([base, -base, unit_rows(num_rows, 16, seed=2)]).float()[None, :num_rows]
    scores = features[0].double() @ prototypes.double().T
    for iterations in (2, 5):
        f = sk.swav_potentials(
            features.to(device), prototypes.to(device), epsilon=epsilon, iterations=iterations,
            backend=backend,
        )  # fmt: skip
        codes = torch.softmax(scores / epsilon + f[0].double().cpu(), -1)
        wanted = sinkhorn(scores, iterations, epsilon)
        assert largest(codes - wanted) <= 2e-6 + 2.0**-21 / epsilon
