"""What other packages offer for the same answer, where they are installed."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import EPSILON, ITERATIONS, TEMPERATURE, Call


def lightly_sinkhorn(scores: Tensor) -> Tensor:
    """[N, K] -> codes [N, K]."""
    codes: Tensor = _lightly().sinkhorn(scores, ITERATIONS, EPSILON)
    return codes


def lightly_swav_loss(features: Tensor, prototypes: Tensor) -> Tensor:
    """[V, B, D], [K, D] -> loss; lightly starts from scores, so the product is torch's."""
    loss = _lightly().SwaVLoss(TEMPERATURE, ITERATIONS, EPSILON)
    scores = features @ prototypes.t()
    value: Tensor = loss(list(scores[:2]), list(scores[2:]))
    return value.squeeze(0)


@functools.cache
def _lightly() -> ModuleType:
    # the one file: its package imports torchvision, which the CPU build of torch often lacks
    package = importlib.util.find_spec("lightly")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "loss" / "swav_loss.py"
    spec = importlib.util.spec_from_file_location("benchmarks_lightly_swav_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pot_sinkhorn(scores: Tensor) -> Call:
    """[N, K] -> codes [N, K]: its plan has the marginals 1 / N and 1 / K, prototypes first."""
    import ot

    num_samples, num_prototypes = scores.shape
    a = scores.new_full((num_samples,), 1 / num_samples)
    b = scores.new_full((num_prototypes,), 1 / num_prototypes)
    cost = -scores  # not timed: to a user of POT the cost is what is given

    def call() -> tuple[Tensor, ...]:
        plan: Any = ot.sinkhorn(a, b, cost, EPSILON, numItermax=ITERATIONS, stopThr=0.0, warn=False)
        return (plan * num_samples,)

    return call


def flash_sinkhorn_potentials(features: Tensor, prototypes: Tensor) -> Call:
    """[N, D], [K, D] -> f [K]: streamed from the features, |z - c|^2 / 2 being 1 - z c."""
    from flash_sinkhorn import SamplesLoss

    solve = SamplesLoss(
        "sinkhorn", potentials=True, backend="alternating", use_epsilon_scaling=False,
        eps=EPSILON, n_iters=ITERATIONS, half_cost=True, allow_tf32=False,
    )  # fmt: skip

    def call() -> tuple[Tensor, ...]:
        f, _ = solve(prototypes, features)  # its first argument is updated first
        return (f.flatten() / EPSILON,)

    with torch.no_grad():
        call()  # it tunes itself
    return call
