"""Public op `swav_potentials`, the first half of `swav_loss`: what the Sinkhorn leaves behind."""

import functools

import torch
from torch import Tensor

from swav_kernels import checks, dispatch
from swav_kernels.distributed import Group, group_name, resolve_group
from swav_kernels.ops import route
from swav_kernels.ops.iteration import potentials
from swav_kernels.ops.sinkhorn import DEFAULT_EPSILON, DEFAULT_ITERATIONS
from swav_kernels.ops.weights import check_prototype_weights, check_sample_weights
from swav_kernels.reference import sinkhorn
from swav_kernels.reference import swav_loss as reference

OP = "swav_loss"  # the kernels of both halves live together
POTENTIALS = "swav_potentials"


@checks.without_autocast
def swav_potentials(
    features: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = DEFAULT_EPSILON,
    iterations: int = DEFAULT_ITERATIONS,
    queue: Tensor | None = None,
    group: Group = None,
    normalize: bool = False,
    prototype_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    precision: str = "float32",
    backend: str | None = None,
) -> Tensor:
    """Prototype potentials of the Sinkhorn codes of features; scores [N, K] are never stored.

    `f` such that `sinkhorn(z @ c.T) == softmax(z @ c.T / epsilon + f, -1)`, each of the A problems
    its own. It is the first half of `swav_loss`, and carries no gradient.

    Args:
        features: [A, N, D], the features of the A assign crops.
        prototypes: [K, D].
        epsilon: smoothing of the Sinkhorn, from 1e-30 to 1e30.
        iterations: T >= 1.
        queue: [A, L, D], features of earlier batches that join the sums.
        group: the process group to sum over; None is this process alone.
        normalize: L2-normalise features and queue first.
        prototype_weights: [K], the share of samples each prototype gets; None is equal shares.
        sample_weights: [N] or [A, N], how much a row of features counts; queue rows count 1.
        precision: "bfloat16" rounds the operands of the products, sums stay float32.
        backend: "auto", "reference", "cpu" or "triton"; None follows `use_backend`.

    Returns:
        f [A, K], float32 (float64 for float64), up to a constant: compare through codes only.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or shapes, devices or the backend do not fit.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
        >>> swav_potentials(z, torch.eye(4)).shape
        torch.Size([2, 4])

    Source: Caron et al. 2020 (arXiv 2006.09882), section 3.1.
    """
    if not route.is_indirect():
        return potentials_of(
            features, prototypes, epsilon, iterations, queue, group, normalize, prototype_weights,
            sample_weights, precision, backend,
        )  # fmt: skip
    f: Tensor = torch.ops.swav_kernels.swav_potentials(
        route.detached(features), route.detached(prototypes), epsilon, iterations,
        route.detached(queue), group_name(POTENTIALS, group), normalize, prototype_weights,
        sample_weights, precision, backend,
    )  # fmt: skip
    return f


def potentials_of(
    features: Tensor,
    prototypes: Tensor,
    epsilon: float,
    iterations: int,
    queue: Tensor | None,
    group: Group,
    normalize: bool,
    prototype_weights: Tensor | None,
    sample_weights: Tensor | None,
    precision: str,
    backend: str | None,
) -> Tensor:
    """F [A, K] by a backend's kernels."""
    epsilon, iterations, name = check(
        features, prototypes, epsilon, iterations, queue, normalize, precision, backend
    )
    checks.check_readable(POTENTIALS, name, features=features, prototypes=prototypes, queue=queue)
    features, prototypes = features.detach(), prototypes.detach()
    queue = None if queue is None else queue.detach()
    if normalize:
        features = checks.normalize_rows(features)
        queue = None if queue is None else checks.normalize_rows(queue)
    return balance(
        POTENTIALS, features, prototypes, epsilon, iterations, queue, group, prototype_weights,
        sample_weights, precision, name,
    )  # fmt: skip


def check(
    features: Tensor,
    prototypes: Tensor,
    epsilon: float,
    iterations: int,
    queue: Tensor | None,
    normalize: bool,
    precision: str,
    backend: str | None,
) -> tuple[float, int, str]:
    """Return epsilon, the iterations and the backend of checked arguments."""
    check_features(POTENTIALS, features, prototypes, "[A, N, D]")
    epsilon = checks.check_scale(POTENTIALS, "epsilon", epsilon)
    iterations = checks.check_iterations(POTENTIALS, iterations, 1)
    checks.check_precision(POTENTIALS, precision)
    checks.check_flags(POTENTIALS, normalize=normalize)
    check_queue(POTENTIALS, queue, features, features.shape[0])
    dtype = _promoted(features, prototypes, queue)
    name = dispatch.choose_backend(OP, features.device, dtype, backend, caller=POTENTIALS)
    return epsilon, iterations, name


def balance(
    op: str,
    features: Tensor,
    prototypes: Tensor,
    epsilon: float,
    iterations: int,
    queue: Tensor | None,
    group: Group,
    prototype_weights: Tensor | None,
    sample_weights: Tensor | None,
    precision: str,
    name: str,
) -> Tensor:
    """`swav_potentials` on behalf of the public function `op`, on the backend of that name.

    Tensors are detached, and all but group and weights is checked.
    """
    group = resolve_group(op, group)
    acc = checks.accumulate_dtype(features, prototypes, queue)
    num_crops, num_rows, _ = features.shape
    sample_weights = check_sample_weights(
        op, sample_weights, num_crops, num_rows, "features", features, acc, name
    )
    prototype_weights = check_prototype_weights(
        op, prototype_weights, prototypes.shape[0], "features", features, acc, name
    )
    if queue is None:
        features, prototypes = checks.promote(features, prototypes)
    else:
        features, prototypes, queue = checks.promote(features, prototypes, queue)
        features = torch.cat([features, queue], 1)
        if sample_weights is not None:
            ones = sample_weights.new_ones(num_crops, queue.shape[1])
            sample_weights = torch.cat([sample_weights, ones], 1)
    if name == "reference":
        scores = reference.scores(features.to(acc), prototypes.to(acc), precision)
        return sinkhorn.potentials(
            scores, iterations, epsilon, sample_weights, prototype_weights, None, group
        )
    return potentials(
        dispatch.kernels(OP, name), (features.contiguous(), prototypes.contiguous()),
        sample_weights, prototype_weights, epsilon, iterations, None, group, precision, precision,
    )  # fmt: skip


def _promoted(*tensors: Tensor | None) -> torch.dtype:
    given = [x.dtype for x in tensors if x is not None]
    return functools.reduce(torch.promote_types, given)


def check_features(op: str, features: Tensor, prototypes: Tensor, layout: str) -> None:
    """Require features of the layout and prototypes [K, D] that fit, on one device."""
    checks.check_tensor(op, "features", features, layout)
    checks.check_tensor(op, "prototypes", prototypes, "[K, D]")
    num_prototypes, dim = prototypes.shape
    checks.check_shape(op, "features", features, (*features.shape[:-1], dim), layout)
    checks.check_not_empty(op, "prototypes", num_prototypes, "K")
    checks.check_not_empty(op, "prototypes", dim, "D")
    checks.check_same_device(op, features=features, prototypes=prototypes)


def check_queue(op: str, queue: Tensor | None, features: Tensor, num_crops: int) -> None:
    """Require a queue [A, L, D] that fits the features, or None."""
    if queue is None:
        return
    checks.check_tensor(op, "queue", queue, "[A, L, D]")
    checks.check_shape(
        op, "queue", queue, (num_crops, queue.shape[1], features.shape[-1]), "[A, L, D]"
    )
    checks.check_same_device(op, features=features, queue=queue)


def check_potentials(
    op: str,
    potentials: Tensor,
    letter: str,
    num_crops: int,
    prototypes: Tensor,
    acc: torch.dtype,
    backend: str,
) -> Tensor:
    """Require potentials [K], or [num_crops, K], in the dtype of the sums; returned for each crop.

    `letter` is the op's for the number of crops.
    """
    layouts = "[K]", f"[{letter}, K]"
    checks.check_tensor(op, "potentials", potentials, *layouts)
    num_prototypes = prototypes.shape[0]
    is_shared = potentials.dim() == 1
    shape = (num_prototypes,) if is_shared else (num_crops, num_prototypes)
    checks.check_shape(op, "potentials", potentials, shape, layouts[0 if is_shared else 1])
    checks.check_same_device(op, prototypes=prototypes, potentials=potentials)
    checks.check_readable(op, backend, potentials=potentials)
    if potentials.dtype != acc:
        raise TypeError(
            f"{op}: potentials must be {acc} for these features, got {potentials.dtype}; "
            "take them from swav_potentials, or convert them with .to"
        )
    return potentials.detach().expand(num_crops, num_prototypes).contiguous()
