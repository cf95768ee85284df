"""Potentials and loss from features and prototypes by the compiled module."""

import torch
from torch import Tensor

from swav_kernels.checks import accumulate_dtype
from swav_kernels.native import address, cpu_kernels
from swav_kernels.stats import CodeStatistics


def potentials(
    features: Tensor,
    prototypes: Tensor,
    sample_weights: Tensor | None,
    log_prototype_weights: Tensor | None,
    epsilon: float,
    iterations: int,
    precision: str,
) -> Tensor:
    """[A, N, D], [K, D] -> f [A, K] after all iterations."""
    features, prototypes = _operands(features, prototypes, precision)
    f = _per_prototype(features, prototypes)
    cpu_kernels(f.dtype).swav_potentials(
        address(features), address(prototypes), address(sample_weights),
        address(log_prototype_weights), address(f), *sizes(features, prototypes), epsilon,
        iterations, precision == "bfloat16", torch.get_num_threads(),
    )  # fmt: skip
    return f


def column_stats(
    features: Tensor,
    prototypes: Tensor,
    sample_weights: Tensor | None,
    epsilon: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """First sweep: maximum and sum over the samples, [A, K] each."""
    features, prototypes = _operands(features, prototypes, precision)
    column_max, sums = (_per_prototype(features, prototypes) for _ in range(2))
    cpu_kernels(sums.dtype).swav_column_stats(
        address(features), address(prototypes), address(sample_weights), address(column_max),
        address(sums), *sizes(features, prototypes), epsilon,
        precision == "bfloat16", torch.get_num_threads(),
    )  # fmt: skip
    return column_max, sums


def column_sums(
    features: Tensor,
    prototypes: Tensor,
    f: Tensor,
    sample_weights: Tensor | None,
    epsilon: float,
    precision: str,
) -> Tensor:
    """Later sweeps: sums [A, K] of the codes that f stands for."""
    features, prototypes = _operands(features, prototypes, precision)
    sums = _per_prototype(features, prototypes)
    cpu_kernels(sums.dtype).swav_column_sums(
        address(features), address(prototypes), address(f), address(sample_weights),
        address(sums), *sizes(features, prototypes), epsilon,
        precision == "bfloat16", torch.get_num_threads(),
    )  # fmt: skip
    return sums


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
    """[V, B, D], [K, D], [A, K] -> loss [], d_features, d_prototypes, statistics if needed."""
    features, prototypes = _operands(features, prototypes, precision)
    acc = features.dtype
    num_assign, num_samples = len(assign), features.shape[1]
    loss = torch.empty((), dtype=acc, device="cpu")
    d_features = torch.empty_like(features) if need_features else None
    d_prototypes = torch.empty_like(prototypes) if need_prototypes else None
    statistics = None
    if need_stats:
        statistics = CodeStatistics(
            nearest=torch.empty(num_assign, num_samples, dtype=torch.int64, device="cpu"),
            code_entropy=torch.empty(num_assign, num_samples, dtype=acc, device="cpu"),
            max_code=torch.empty(num_assign, num_samples, dtype=acc, device="cpu"),
            code_sums=torch.empty(num_assign, prototypes.shape[0], dtype=acc, device="cpu"),
        )
    cpu_kernels(acc).swav_loss(
        address(features), address(prototypes), address(f), address(loss), address(d_features),
        address(d_prototypes), [address(x) for x in statistics or ()],
        *sizes(features, prototypes), assign, temperature, epsilon, hard,
        precision == "bfloat16", torch.get_num_threads(),
    )  # fmt: skip
    return loss, d_features, d_prototypes, statistics


def operands(
    features: Tensor, prototypes: Tensor, precision: str, acc: torch.dtype
) -> tuple[Tensor, Tensor]:
    """In the dtype of the sums; "bfloat16" rounds both, their products are then exact."""
    if precision == "bfloat16":
        features, prototypes = features.bfloat16(), prototypes.bfloat16()
    if features.dtype == acc:
        return features, prototypes
    return features.to(acc), prototypes.to(acc)


def _operands(features: Tensor, prototypes: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    return operands(features, prototypes, precision, accumulate_dtype(features))


def _per_prototype(features: Tensor, prototypes: Tensor) -> Tensor:
    return torch.empty(features.shape[0], prototypes.shape[0], dtype=features.dtype, device="cpu")


def sizes(features: Tensor, prototypes: Tensor) -> tuple[int, int, int, int]:
    """Crops or problems, samples, prototypes, dim: the order of every kernel."""
    num_crops, num_samples, dim = features.shape
    return num_crops, num_samples, prototypes.shape[0], dim
