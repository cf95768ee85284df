"""The whole SwAV loss from features and prototypes; unless "bfloat16" allows it and it pays (see
stored_loss.py), nothing of a row's K scores is ever stored.

Prototypes stream past blocks of samples as keys and values stream past queries in attention:
softmax(z c^T / temperature) c with its normaliser gives loss and d_features in one pass, and the
same with epsilon and the potentials gives the codes' barycentres. d_prototypes is a second pass.
"""

import torch
from torch import Tensor

from swav_kernels.stats import CodeStatistics
from swav_kernels.triton_kernels import columns
from swav_kernels.triton_kernels import potentials as steps
from swav_kernels.triton_kernels.code_statistics import code_statistics
from swav_kernels.triton_kernels.crop_loss import crop_loss
from swav_kernels.triton_kernels.d_prototypes import d_prototypes
from swav_kernels.triton_kernels.launch import on_its_device, target_of
from swav_kernels.triton_kernels.product_tiles import ProductTiles, tiles
from swav_kernels.triton_kernels.reduce import sum_partials
from swav_kernels.triton_kernels.rows import row_sums
from swav_kernels.triton_kernels.scores import Scores
from swav_kernels.triton_kernels.stored_loss import fits, stored_loss


@on_its_device
def potentials(
    features: Tensor,
    prototypes: Tensor,
    sample_weights: Tensor | None,
    log_r: Tensor | None,
    epsilon: float,
    iterations: int,
    precision: str,
) -> Tensor:
    """Return f [A, K] of features [A, N, D] after T iterations."""
    if features.numel() == 0:
        return _per_prototype(features, prototypes, -torch.inf)
    scores = Scores(features, prototypes, precision)
    block = _tiles(features, prototypes, precision)
    return steps.iterate(
        columns.column_stats(scores, sample_weights, epsilon, block.columns),
        lambda pending: _sweep(scores, pending, sample_weights, epsilon, block),
        log_r,
        iterations,
    )


@on_its_device
def column_stats(
    features: Tensor,
    prototypes: Tensor,
    sample_weights: Tensor | None,
    epsilon: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Return max_b t and sum_b exp(t - max) of t = z c^T / epsilon + log w, [A, K] each."""
    if features.numel() == 0:
        return (
            _per_prototype(features, prototypes, -torch.inf),
            _per_prototype(features, prototypes, 0),
        )
    scores = Scores(features, prototypes, precision)
    block = _tiles(features, prototypes, precision)
    return steps.combine_stats(
        *columns.column_stats(scores, sample_weights, epsilon, block.columns)
    )


@on_its_device
def column_sums(
    features: Tensor,
    prototypes: Tensor,
    f: Tensor,
    sample_weights: Tensor | None,
    epsilon: float,
    precision: str,
) -> Tensor:
    """Return sum_b w_b softmax_k(z_b c^T / epsilon + f) [A, K]."""
    if features.numel() == 0:
        return _per_prototype(features, prototypes, 0)
    scores = Scores(features, prototypes, precision)
    block = _tiles(features, prototypes, precision)
    return sum_partials(_partial_sums(scores, f, sample_weights, epsilon, block))


@on_its_device
def loss_and_gradients(
    features: Tensor,
    prototypes: Tensor,
    f: Tensor,
    assign: tuple[int, ...],
    temperature: float,
    epsilon: float,
    hard: bool,
    precision: str,
    need_features: bool,
    need_prototypes: bool,
    need_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, CodeStatistics | None]:
    """Return (loss [], d_features [V, B, D], d_prototypes [K, D], statistics) of potentials f."""
    if features.shape[1] == 0:
        return _without_samples(
            features, prototypes, len(assign), need_features, need_prototypes, need_stats
        )
    block = _tiles(features, prototypes, precision)
    coded = features[: len(assign)]
    if assign != tuple(range(len(assign))):
        coded = torch.stack([features[crop] for crop in assign])
    code_scores = Scores(coded, prototypes, precision)
    if fits(features, prototypes, hard, precision):
        loss, d_features, gradient = stored_loss(
            features, prototypes, f, assign, temperature, epsilon, need_features, need_prototypes
        )
        if not need_stats:
            return loss, d_features, gradient, None
        q = row_sums(code_scores, f, epsilon, block.rows, deviation=True, nearest=True)
    else:
        p = row_sums(
            Scores(features, prototypes, precision), None, temperature, block.rows,
            values=need_features,
        )  # fmt: skip
        q = row_sums(
            code_scores, f, epsilon, block.rows,
            index=hard, values=not hard, deviation=need_stats and not hard, nearest=need_stats,
        )  # fmt: skip
        loss, d_features = crop_loss(
            features, prototypes, p, q, assign, temperature, precision, need_features, block.crops
        )
        gradient = None
        if need_prototypes:
            gradient = d_prototypes(
                features, prototypes, f, p, q, assign, temperature, epsilon, precision,
                block.d_prototypes,
            )  # fmt: skip
    statistics = None
    if need_stats:
        code_sums = columns.column_sums(code_scores, f, q, None, epsilon, block.columns)
        statistics = code_statistics(q, sum_partials(code_sums))
    return loss, d_features, gradient, statistics


def _tiles(features: Tensor, prototypes: Tensor, precision: str) -> ProductTiles:
    _, num_rows, dim = features.shape
    target = target_of(features.device)
    return tiles(num_rows, prototypes.shape[0], dim, features.dtype, precision, target)


def _partial_sums(
    scores: Scores, f: Tensor, sample_weights: Tensor | None, epsilon: float, block: ProductTiles
) -> Tensor:
    rows = row_sums(scores, f, epsilon, block.rows)
    return columns.column_sums(scores, f, rows, sample_weights, epsilon, block.columns)


def _sweep(
    scores: Scores,
    pending: steps.Pending,
    sample_weights: Tensor | None,
    epsilon: float,
    block: ProductTiles,
) -> steps.Pending:
    f = pending.settle()
    return pending.after(f, _partial_sums(scores, f, sample_weights, epsilon, block))


def _per_prototype(features: Tensor, prototypes: Tensor, value: float) -> Tensor:
    shape = features.shape[0], prototypes.shape[0]
    return torch.full(shape, value, dtype=torch.float32, device=features.device)


def _without_samples(
    features: Tensor,
    prototypes: Tensor,
    num_coded: int,
    need_features: bool,
    need_prototypes: bool,
    need_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, CodeStatistics | None]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=features.device)

    statistics = None
    if need_stats:
        nearest = torch.zeros(num_coded, 0, dtype=torch.int64, device=features.device)
        code_sums = zeros(num_coded, prototypes.shape[0])
        statistics = CodeStatistics(nearest, zeros(num_coded, 0), zeros(num_coded, 0), code_sums)
    return (
        zeros(),
        zeros(*features.shape) if need_features else None,
        zeros(*prototypes.shape) if need_prototypes else None,
        statistics,
    )
