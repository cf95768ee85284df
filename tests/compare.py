"""Float64 oracles written from the formulas alone, and the bounds every backend is held to."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)
ROW_SUM_BOUND = 2e-6
HALF_FACTOR = 1.1  # error of an op on half inputs, against eager torch at that dtype


# --- inputs -----------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    """A seeded generator: every test draws the same numbers on every machine."""
    return torch.Generator().manual_seed(seed)


def unit_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """L2-normalised Gaussian rows [..., D], rounded to dtype."""
    rows = torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1).to(dtype)


def crops(
    num_crops: int, num_samples: int, dim: int, num_prototypes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Float32 features [V, B, D] whose crops resemble each other, and prototypes [K, D]."""
    centre = unit_rows(1, num_samples, dim, seed=seed)
    noise = unit_rows(num_crops, num_samples, dim, seed=seed + 1)
    features = torch.nn.functional.normalize(centre + 0.5 * noise, dim=-1)
    return features.float(), unit_rows(num_prototypes, dim, seed=seed + 2, dtype=torch.float32)


def random_codes(*shape: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    """Float32 codes [..., K], rows summing to 1."""
    noise = torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
    return torch.softmax(noise * sharpness, -1).float()


def strided_layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values stored transposed, with gaps, and away from the storage's start."""
    yield "transposed", tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    gaps = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), math.nan).to(tensor)
    gaps[..., 1::2] = tensor
    yield "every second column", gaps[..., 1::2]
    padded = torch.full((tensor.numel() + 3,), math.nan).to(tensor)
    padded[3:] = tensor.reshape(-1)
    yield "offset by 3", padded[3:].view(tensor.shape)
    yield "first dimension expanded", tensor[:1].expand(tensor.shape)


SCORE_KINDS = (
    "cosines",
    "scaled",
    "shifted",
    "prototype",
    "sample",
    "one-hot",
    "constant",
    "masked",
)


def make_scores(kind: str, n: int, k: int) -> Tensor:
    """Float32 scores [N, K] of one kind."""
    scores = unit_rows(n, 16, seed=n) @ unit_rows(k, 16, seed=k + 1).T
    if kind == "scaled":
        scores = scores / scores.abs().max() * 1e4
    elif kind == "shifted":  # by a constant, per prototype and per sample
        scores = (
            scores
            + 4
            + torch.linspace(-2, 2, k).double()
            + torch.linspace(1, -1, n).double()[:, None]
        )
    elif kind == "prototype":
        scores[:, k // 2] += 1
    elif kind == "sample":
        scores[n // 2] += 1
    elif kind == "one-hot":
        scores = torch.eye(k, dtype=torch.float64)[
            torch.randint(k, (n,), generator=generator(n + k))
        ]
    elif kind == "constant":
        scores = torch.full_like(scores, 0.3)
    elif kind == "masked":
        mask = torch.rand(n, k, generator=generator(n + k)) < 0.3
        mask[torch.arange(n), torch.arange(n) % k] = False  # every row keeps a prototype
        scores = scores.masked_fill(mask, -torch.inf)
    return scores.float()


# --- oracles ----------------------------------------------------------------------------------


def sinkhorn_log_u(
    scores: Tensor,
    iterations: int = 3,
    epsilon: float = 0.05,
    prototype_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
) -> Tensor:
    """u_k = r_k / sum_b a_b w_b E_bk, a_b = 1 / sum_k u_k E_bk, in logarithms; [N, K] -> [K].

    Runs in the dtype of the scores (float64 is the oracle, half is eager torch at that dtype).
    """
    log_e = scores / epsilon
    log_r = scores.new_zeros(scores.shape[1])
    if prototype_weights is not None:
        log_r = prototype_weights.to(scores).log()
    log_w = scores.new_zeros(scores.shape[0])
    if sample_weights is not None:
        log_w = sample_weights.to(scores).log()
    log_a = torch.zeros_like(log_w)
    log_u = log_r
    for _ in range(iterations):
        column = torch.logsumexp((log_a + log_w).unsqueeze(1) + log_e, 0)
        log_u = torch.where(
            column == -math.inf, -math.inf, log_r - column
        )  # an empty column is dead
        row = torch.logsumexp(log_u + log_e, 1)
        log_a = torch.where(
            row == -math.inf, -math.inf, -row
        )  # a row without prototypes adds nothing
    return log_u


def sinkhorn(
    scores: Tensor,
    iterations: int = 3,
    epsilon: float = 0.05,
    hard: bool = False,
    **weights: Tensor | None,
) -> Tensor:
    """Codes softmax_k(s / epsilon + log u) of one problem [N, K]."""
    logits = scores / epsilon + sinkhorn_log_u(scores, iterations, epsilon, **weights)
    codes = torch.softmax(logits, -1)
    return one_hot(logits).to(codes) if hard else codes


def one_hot(logits: Tensor) -> Tensor:
    """One-hot of the row maximum, lowest index on ties."""
    is_max = logits == logits.amax(-1, keepdim=True)
    return torch.nn.functional.one_hot(is_max.int().argmax(-1), logits.shape[-1])


def swapped_cross_entropy(
    scores: Tensor, codes: Tensor, temperature: float = 0.1, assign: Sequence[int] = (0, 1)
) -> Tensor:
    """The literal double loop over crop pairs, in the dtype of the scores."""
    loss = scores.new_zeros(())
    for q, i in zip(codes, assign, strict=True):
        subloss = scores.new_zeros(())
        others = [v for v in range(len(scores)) if v != i]
        for v in others:
            log_p = torch.log_softmax(scores[v] / temperature, dim=1)
            log_p = torch.where(q == 0, 0, log_p)  # no code on a masked score: 0, not 0 * inf
            subloss = subloss - torch.mean(torch.sum(q * log_p, dim=1))
        loss = loss + subloss / len(others)
    return loss / len(assign)


def swav_codes(
    scores: Tensor,
    assign: Sequence[int],
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue_scores: Tensor | None = None,
    hard: bool = False,
    prototype_weights: Tensor | None = None,
    potentials: Tensor | None = None,
) -> Tensor:
    """Codes [A, B, K]: a Sinkhorn for each assign crop, with its queue's rows; batch rows kept."""
    codes = []
    for a, i in enumerate(assign):
        batch = scores[i].detach()
        if potentials is not None:
            f = potentials.to(batch).expand(len(assign), -1)[a]
        else:
            rows = batch if queue_scores is None else torch.cat([batch, queue_scores[a].detach()])
            f = sinkhorn_log_u(rows, iterations, epsilon, prototype_weights)
        logits = batch / epsilon + f
        codes.append(one_hot(logits).to(batch) if hard else torch.softmax(logits, -1))
    return torch.stack(codes)


def swav_loss(
    features: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    assign: Sequence[int] = (0, 1),
    queue: Tensor | None = None,
    normalize: bool = False,
    **sinkhorn_keywords: object,
) -> Tensor:
    """Scores = z c^T, Sinkhorn of the assign crops, double loop; in the dtype of the features."""
    if normalize:
        features = l2_normalize(features)
        queue = None if queue is None else l2_normalize(queue)
    scores = features @ prototypes.T
    queue_scores = None if queue is None else queue @ prototypes.T
    codes = swav_codes(scores, assign, queue_scores=queue_scores, **sinkhorn_keywords)  # type: ignore[arg-type]
    return swapped_cross_entropy(scores, codes, temperature, assign)


def l2_normalize(rows: Tensor) -> Tensor:
    """Z / max(|z|, 1e-12), whose gradient at a zero row is zero."""
    norm = rows.pow(2).sum(-1, keepdim=True)
    safe = torch.where(norm > 0, norm, 1).sqrt()
    return torch.where(norm > 0, rows / safe.clamp_min(1e-12), 0)


def swav_stats(
    scores: Tensor, codes: Tensor, loss: Tensor, assign: Sequence[int]
) -> dict[str, float]:
    """Telemetry from float64 scores [V, B, K] and codes [A, B, K], one sample at a time."""
    num_prototypes = scores.shape[-1]
    num_samples = scores.shape[1]

    def entropy(p: Tensor) -> float:
        if num_prototypes == 1:
            return 1.0
        return -sum(x * math.log(x) for x in p.tolist() if x > 0) / math.log(num_prototypes)

    nearest = one_hot(scores[list(assign)]).argmax(-1)  # [A, B]
    usage = torch.bincount(nearest.reshape(-1), minlength=num_prototypes).double()
    mean_code = codes.reshape(-1, num_prototypes).mean(0)
    pairs = list(itertools.combinations(range(len(assign)), 2))
    agreement = [
        sum(float(nearest[i, b] == nearest[j, b]) for i, j in pairs) for b in range(num_samples)
    ]
    return {
        "loss_minus_log_k": float(loss) - math.log(num_prototypes),
        "code_entropy": sum(map(entropy, codes.reshape(-1, num_prototypes)))
        / codes[..., 0].numel(),
        "mean_code_entropy": entropy(mean_code),
        "usage_entropy": entropy(usage / usage.sum()),
        "prototypes_in_use": float((usage > 0).sum()),
        "mean_max_code": float(codes.amax(-1).mean()),
        "marginal_residual": float((num_prototypes * mean_code - 1).abs().max()),
        "view_agreement": sum(agreement) / (num_samples * len(pairs)) if pairs else math.nan,
    }


# --- bounds -----------------------------------------------------------------------------------


def sinkhorn_bound(scores: Tensor, epsilon: float) -> float:
    """2e-6 + 2^-22 max|s| / epsilon over the finite scores: what rounding s / epsilon costs."""
    finite = scores[scores.isfinite()].double().abs()
    return 2e-6 + 2.0**-22 * (finite.max().item() if finite.numel() else 0.0) / epsilon


def assert_codes(codes: Tensor, wanted: Tensor, scores: Tensor, epsilon: float) -> None:
    """Hold codes to the Sinkhorn bound, rows to a sum of 1, and NaN and shape to the oracle's."""
    codes = codes.detach().double().cpu()
    assert codes.shape == wanted.shape
    torch.testing.assert_close(
        codes, wanted, rtol=0, atol=sinkhorn_bound(scores, epsilon), equal_nan=True
    )
    finite_rows = ~wanted.isnan().any(-1)
    row_error = (codes.sum(-1) - 1)[finite_rows].abs()
    assert largest(row_error) <= ROW_SUM_BOUND


def assert_loss(loss: Tensor, wanted: Tensor, temperature: float = 0.1) -> None:
    """Float32 loss within 1e-6 max(|loss|, 1 / (10 temperature)) of float64."""
    assert loss.shape == ()
    bound = 1e-6 * max(abs(wanted.item()), 1 / (10 * temperature))
    assert abs(loss.item() - wanted.item()) <= bound


def assert_gradient(gradient: Tensor | None, wanted: Tensor, epsilon: float = 0.05) -> None:
    """Float32 gradient within 2e-6 + 1e-7 / epsilon of the largest gradient."""
    assert gradient is not None
    assert gradient.shape == wanted.shape
    error = largest(gradient.double().cpu() - wanted)
    assert error <= (2e-6 + 1e-7 / epsilon) * largest(wanted)


def largest(tensor: Tensor) -> float:
    """Max |x|, NaN if there is one, 0 if there is nothing."""
    return tensor.detach().abs().max().item() if tensor.numel() else 0.0


def value_and_gradients(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Call on fresh leaves of the same memory layout; the value and one gradient an input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def assert_no_worse_than_eager(
    op: Callable[..., Tensor], oracle: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """Half inputs: value and gradient errors at most 1.1x those of eager torch at that dtype.

    Both against float64 on the same rounded inputs; `oracle` runs in the dtype it is given.
    """
    loss, gradients = value_and_gradients(op, *inputs)
    cpu_inputs = [x.cpu() for x in inputs]
    wanted, wanted_gradients = value_and_gradients(oracle, *(x.double() for x in cpu_inputs))
    eager, eager_gradients = value_and_gradients(oracle, *cpu_inputs)

    def error(got: Tensor, want: Tensor) -> float:
        return largest(got.double().cpu() - want)

    assert error(loss, wanted) <= HALF_FACTOR * error(eager, wanted)
    for x, got, eager_got, want in zip(
        inputs, gradients, eager_gradients, wanted_gradients, strict=True
    ):
        assert got.dtype == x.dtype
        assert error(got, want) <= HALF_FACTOR * error(eager_got, want)
