"""Every op on many small shapes: what tools/sanitize_gpu.py runs under compute-sanitizer.

    python tests/sanitizer_shapes.py cuda   # on a GPU, every backend that can run there

Sizes lie at, below and above those of tiles and warps, for there a mask can be wrong.
"""

import itertools
import sys
from collections.abc import Callable, Iterator

import torch
from compare import crops, generator, make_scores, random_codes, value_and_gradients
from torch import Tensor

import swav_kernels as sk
from swav_kernels import dispatch

SINKHORN = [*itertools.product((1, 3, 33, 130), (1, 31, 37, 129, 300)), (257, 3000), (2, 5000)]
LOSS = [*itertools.product((2, 3), (1, 33), (5, 16, 70), (3, 37, 130)), (2, 130, 128, 300)]
ROWS = [(1, 1), (7, 3), (33, 130), (64, 37), (5, 9000)]
CALLS = 4 * len(SINKHORN) + 3 * len(LOSS) + 3 * len(ROWS)  # of a backend that has every op


def cases(backend: str, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and calls; each call gives tensors, gradients with them."""
    on = {"backend": backend}

    def has(op: str) -> bool:
        return dispatch.why_not(backend, op, torch.device(device)) is None

    if has("sinkhorn"):
        for n, k in SINKHORN:
            scores = torch.stack([make_scores("cosines", n, k), make_scores("masked", n, k)])
            scores = scores.to(device)
            weights = torch.rand(n, generator=generator(n)).to(device) + 0.1
            for name, call in {
                "plain": lambda s: sk.sinkhorn(s, **on),
                "of bfloat16": lambda s: sk.sinkhorn(s.bfloat16(), epsilon=0.5, **on),
                "hard": lambda s: sk.sinkhorn(s, hard=True, **on),
                "weighted": lambda s, w=weights: sk.sinkhorn(s, sample_weights=w, **on),
            }.items():
                yield f"sinkhorn {n}x{k} {name}", lambda c=call, s=scores: c(s)
    if has("swav_loss"):
        for sizes in LOSS:
            z, c = (x.to(device) for x in crops(*sizes))
            for name, keywords in {
                "": {},
                "hard": {"hard": True},
                "bfloat16": {"precision": "bfloat16"},
            }.items():
                shape = "x".join(map(str, sizes))
                yield (
                    f"swav_loss {shape} {name}",
                    lambda z=z, c=c, kw=keywords: with_gradients(
                        lambda z, c: sk.swav_loss(z, c, **kw, **on), z, c
                    ),
                )
    if has("swapped_cross_entropy"):
        for n, k in ROWS:
            s = torch.stack([make_scores("cosines", n, k) for _ in range(3)]).to(device)
            q = random_codes(2, n, k).to(device)
            yield (
                f"swapped_cross_entropy {n}x{k}",
                lambda s=s, q=q: with_gradients(lambda s: sk.swapped_cross_entropy(s, q, **on), s),
            )
            yield (
                f"prototype_cross_entropy {n}x{k}",
                lambda s=s, q=q: with_gradients(
                    lambda s: sk.prototype_cross_entropy(s, q[0], **on), s[0]
                ),
            )
    if has("prototype_scores"):
        for n, k in ROWS:
            z, c = (x.to(device) for x in crops(1, n, 70, k))
            yield (
                f"prototype_scores {n}x{k}",
                lambda z=z, c=c: with_gradients(
                    lambda z, c: sk.prototype_scores(z, c, **on).sum(), z[0], c
                ),
            )


def with_gradients(op: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Value and gradients."""
    value, gradients = value_and_gradients(op, *inputs)
    return value, *gradients


def main(device: str) -> None:
    """Run all of them on every backend of the device but the reference, one after the other."""
    count = 0
    for backend in sk.available_backends():
        if backend != "reference" and dispatch.why_not(backend, None, torch.device(device)) is None:
            for name, call in cases(backend, device):
                call()
                if device != "cpu":
                    torch.cuda.synchronize()  # a fault belongs to the case that is named last
                count += 1
                print(f"{backend}: {name}", flush=True)
    print(f"{count} cases")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
