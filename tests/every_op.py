"""Every op, value and gradient, on one input: what must have the same bits each time."""

import hashlib
from collections.abc import Callable

import torch
from compare import crops, generator, random_codes, unit_rows, value_and_gradients
from torch import Tensor

import swav_kernels as sk

# (V, B, D, K); a Sinkhorn gets a further thread for every 65,536 scores
LARGE, SMALL = (3, 500, 16, 301), (3, 33, 16, 37)
Call = Callable[[], tuple[Tensor, ...]]


def calls(backend: str, device: str, sizes: tuple[int, int, int, int]) -> dict[str, Call]:
    """A call of every op and of its ways through the kernels, by name."""
    features, prototypes = (x.to(device) for x in crops(*sizes))
    num_crops, num_samples, dim, k = sizes
    scores = (unit_rows(num_crops, num_samples, dim) @ unit_rows(k, dim, seed=1).T).float()
    scores = scores.to(device)
    codes = random_codes(2, num_samples, k).to(device)
    queue = unit_rows(2, 70, dim, seed=5, dtype=torch.float32).to(device)
    shares = torch.rand(k, generator=generator(1)).to(device)
    weights = torch.rand(num_samples, generator=generator(2)).to(device)
    on = {"backend": backend}

    def loss(**keywords: object) -> Call:
        z, c = features, prototypes
        if keywords.pop("half", False):
            z = z.bfloat16()
        return lambda: _flat(
            value_and_gradients(lambda z, c: sk.swav_loss(z, c, **keywords, **on), z, c)
        )

    def cross_entropy(s: Tensor) -> Call:
        return lambda: _flat(
            value_and_gradients(lambda s: sk.swapped_cross_entropy(s, codes, **on), s)
        )

    def dots(**keywords: object) -> Call:
        def call() -> tuple[Tensor, ...]:
            leaves = [x.detach().requires_grad_() for x in (features, prototypes)]
            dots = sk.prototype_scores(*leaves, **keywords, **on)
            return dots.detach(), *torch.autograd.grad(dots, leaves, scores)

        return call

    def codes_of(s: Tensor, *args: object, **keywords: object) -> Call:
        return lambda: (sk.sinkhorn(s, *args, **keywords, **on),)

    def potentials(**keywords: object) -> Call:
        return lambda: (
            sk.sinkhorn_potentials(scores, **keywords, **on),
            sk.swav_potentials(features, prototypes, **keywords, **on),
        )

    def distillation(is_rows: bool, **keywords: object) -> Call:
        teacher, e = features[:2, :, : dim // 2].contiguous(), prototypes[:, : dim // 2]
        z, t = (features[0], teacher[1]) if is_rows else (features, teacher)
        return lambda: _flat(
            value_and_gradients(
                lambda z, c: sk.prototype_distillation_loss(
                    z, c, t, e, weights=weights, **keywords, **on
                ),
                z, prototypes,
            )
        )  # fmt: skip

    return {
        "prototype_scores": dots(),
        "prototype_scores normalized": dots(normalize=True),
        "sinkhorn": codes_of(scores),
        "sinkhorn of logarithms": codes_of(scores, epsilon=0.005),
        "sinkhorn of bfloat16": codes_of(scores[0].bfloat16()),
        "sinkhorn hard": codes_of(scores, hard=True),
        "sinkhorn weighted": codes_of(scores, prototype_weights=shares, sample_weights=weights),
        "sinkhorn without iterations": codes_of(scores, 0),
        "potentials": potentials(),
        "potentials of logarithms": potentials(epsilon=0.005),
        "potentials bfloat16": potentials(precision="bfloat16"),
        "swapped_cross_entropy": cross_entropy(scores),
        "swapped_cross_entropy of bfloat16": cross_entropy(scores.bfloat16()),
        "prototype_cross_entropy": lambda: _flat(
            value_and_gradients(
                lambda s: sk.prototype_cross_entropy(s, codes[0], weights=weights, **on), scores[0]
            )
        ),
        "swav_loss": loss(),
        "swav_loss with a queue": loss(queue=queue, epsilon=0.01),
        "swav_loss hard": loss(hard=True, assign=(2, 0)),
        "swav_loss bfloat16": loss(precision="bfloat16"),
        "swav_loss of bfloat16": loss(half=True),
        "prototype_distillation_loss": distillation(is_rows=True),
        "prototype_distillation_loss of crops": distillation(is_rows=False),
        "prototype_distillation_loss bfloat16": distillation(is_rows=True, precision="bfloat16"),
        "stats": lambda: tuple(
            sk.swav_loss(features, prototypes, return_stats=True, **on)[1].values()
        ),
    }  # fmt: skip


def _flat(results: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return results[0], *results[1]


def digests(named: dict[str, Call]) -> dict[str, str]:
    """A hash of the bits of every call's results, by its name."""
    found = {}
    for name, call in named.items():
        bits = hashlib.sha256()
        for tensor in call():
            assert not tensor.isnan().any(), name
            bits.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        found[name] = bits.hexdigest()
    return found
