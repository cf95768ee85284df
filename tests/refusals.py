"""Wrong values for arguments of every kind: what a caller may pass by mistake."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.masked import masked_tensor
from torch.utils._pytree import tree_map

A, V, N, D, K, L = 2, 3, 4, 8, 5, 6  # sizes of the right values


class Of(NamedTuple):
    """What an argument is: its kind, a right value, and whether None is right too."""

    kind: str
    right: Any
    optional: bool = False
    more: tuple[tuple[str, Any], ...] = ()  # wrong values of this argument alone


NO_NUMBERS = (("text", "0.1"), ("a list", [0.1]), ("an object", object()), ("complex", 1j))
Labelled = Iterator[tuple[str, Any]]


def wrong(of: Of) -> Labelled:
    """Values that the argument does not take, each with a label."""
    if not of.optional and of.kind != "any":
        yield "None", None
    yield from of.more
    yield from VALUES[of.kind](of.right)


def _no_tensors() -> Labelled:
    yield from NO_NUMBERS
    yield "a number", 1.5
    yield "a flag", True
    yield "nested lists", [[0.5, 0.5]]
    yield "numpy", np.ones((N, K), np.float32)


def tensors(right: Tensor) -> Labelled:
    """What is no dense floating tensor of that rank."""
    yield from _no_tensors()
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        yield str(dtype), torch.ones_like(right).to(dtype)
    yield "quantized", torch.quantize_per_tensor(right, 0.1, 0, torch.quint8)
    yield "sparse", right.to_sparse()
    if right.dim() == 2:
        yield "sparse rows", right.to_sparse_csr()
        yield "sparse blocks", torch.ones(4, 4).to_sparse_bsr((2, 2))
    yield "mkldnn", right.to_mkldnn()
    yield "nested", torch.nested.nested_tensor([right, right])
    yield "ragged", torch.nested.nested_tensor([right, right], layout=torch.jagged)
    yield "0-dim", torch.tensor(0.5)
    yield "5-d", right.reshape(*(1,) * (5 - right.dim()), *right.shape)


def rows_of_features(right: Tensor) -> Labelled:
    """As tensors, but any number of dimensions will do."""
    yield from (x for x in tensors(right) if x[0] != "5-d")


def scales(_: Any) -> Labelled:
    yield from NO_NUMBERS
    yield "a flag", True
    yield "a tensor", torch.ones(3)
    values = (0, 0.0, -0.05, math.nan, math.inf, -math.inf, 10**400, -Fraction(1, 3), np.float32(0))
    for value in values:
        yield f"{value!r:.12}", value


def reals(_: Any) -> Labelled:
    yield from NO_NUMBERS
    yield "a flag", True
    for value in (math.nan, math.inf, -math.inf, 10**400):
        yield f"{value!r:.12}", value


def eps(_: Any) -> Labelled:
    yield from reals(None)
    yield "negative", -1e-8


def counts_or_less(_: Any) -> Labelled:
    yield from NO_NUMBERS
    yield "a flag", True
    yield "a fraction", 1.5
    yield "a float", 3.0
    yield "NaN", math.nan
    yield "a tensor", torch.tensor([3])
    yield "beyond 64 bits", 10**30


def counts(_: Any) -> Labelled:
    yield from counts_or_less(None)
    yield "negative", -1


def flags(_: Any) -> Labelled:
    for value in (0, 1, 1.0, "yes", "", [True], object()):
        yield f"{value!r:.7}", value
    yield "a tensor of two", torch.tensor([True, False])


def backends(_: Any) -> Labelled:
    for value in (0, True, "cpp", "CPU", "", b"cpu", ["cpu"], ("cpu",), torch.device("cpu")):
        yield repr(value), value


def precisions(_: Any) -> Labelled:
    for value in (0, True, "float16", "", b"bfloat16", ["float32"], torch.float32, torch.ones(2)):
        yield f"{value!r:.20}", value


def groups(_: Any) -> Labelled:
    for value in ("world", 0, 1, True, [0, 1], object(), torch.ones(2)):
        yield f"{value!r:.7}", value


def assigns(_: Any) -> Labelled:
    values = (
        0, 1.5, "01", (), (0, 0), (0, V), (-1, 0), (0, 1.0), (0, None), (True, False), {0, 1},
        [[0], [1]], (0, "1"), (0, 10**30), tuple(range(10_000)), torch.tensor([0, 1]),
        torch.arange(5000),
    )  # fmt: skip
    for value in values:
        yield f"{value!r:.20}", value


def code_bases(_: Any) -> Labelled:
    for value in (0, True, "lightley", "", b"lightly", ["lightly"], object()):
        yield f"{value!r:.12}", value


def outs(right: Tensor) -> Labelled:
    """Tensors that codes cannot be written to."""
    yield from tensors(right)
    rows, columns = right.shape
    for shape in ((rows, columns + 1), (columns, rows), (1, rows, columns)):
        yield f"shape {list(shape)}", torch.empty(shape)
    yield "float64", right.double()
    yield "half", right.half()
    yield "on meta", right.to("meta")
    yield "with gaps", torch.empty(rows, 2 * columns)[:, ::2]
    yield "transposed", torch.empty(columns, rows).t()
    yield "expanded", torch.empty(1, columns).expand(rows, columns)
    yield "requires grad", torch.empty(rows, columns, requires_grad=True)
    yield "a parameter", torch.nn.Parameter(torch.empty(rows, columns))
    with torch.inference_mode():
        of_inference = torch.empty(rows, columns)
    yield "of inference", of_inference


def views(right: list[Tensor]) -> Labelled:
    """What is no list of scores [N, K] of one size."""
    yield from NO_NUMBERS
    yield "a number", 1
    for label, value in (("None", None), *tensors(right[0])):
        yield f"{label} in it", [*right[:-1], value]
    yield "other rows in it", [*right[:-1], torch.rand(N + 1, K)]
    yield "other columns in it", [*right[:-1], torch.rand(N, K + 1)]
    yield "on meta in it", [*right[:-1], right[-1].to("meta")]


def queue_views(right: list[Tensor]) -> Labelled:
    yield from (x for x in views(right) if x[0] != "other rows in it")
    yield "too few", right[:1]
    yield "empty", []


def count_tensors(right: Tensor) -> Labelled:
    yield from NO_NUMBERS
    yield "a number", 4
    yield "two", torch.tensor([1, 2])
    yield "bool", torch.tensor(True)
    yield "complex", torch.tensor(1j)


def states(_: Any) -> Labelled:
    yield from _no_tensors()
    yield "three", torch.tensor([0, 0, 0])
    yield "0-dim", torch.tensor(0)
    yield "floats", torch.tensor([0.5, 1.0])
    for pair in ([L, 0], [-1, 0], [0, L + 1], [0, -1], [3, 1]):
        yield str(pair), torch.tensor(pair)


VALUES: dict[str, Callable[[Any], Labelled]] = {
    "tensor": tensors, "rows": rows_of_features,
    "scale": scales, "real": reals, "eps": eps, "count": counts,
    "count or less": counts_or_less, "flag": flags, "backend": backends, "precision": precisions,
    "group": groups, "assign": assigns, "code base": code_bases, "out": outs, "views": views,
    "queue views": queue_views, "count tensor": count_tensors, "state": states,
    "any": lambda _: iter(()),
}  # fmt: skip


# --- tensors whose memory is not theirs: each of these may end a process ------------------------


class Opaque(Tensor):
    """A subclass that keeps its numbers in another tensor, as wrappers do."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Opaque":
        opaque = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        opaque.inner = inner
        return opaque

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def unwrap(x: Any) -> Any:
            return x.inner if isinstance(x, Opaque) else x

        def wrap(x: Any) -> Any:
            return Opaque(x) if isinstance(x, Tensor) else x

        plain = tree_map(unwrap, (args, kwargs or {}))
        return tree_map(wrap, function(*plain[0], **plain[1]))


def without_memory(right: Tensor, mesh: Any) -> Labelled:
    """Tensors that look right, with no numbers where their address leads; a mesh for DTensors."""
    yield "a DTensor", DTensor.from_local(right, mesh, [Replicate()])
    yield "a shard", DTensor.from_local(right, mesh, [Shard(0)])
    yield "a wrapper", Opaque(right)
    yield "a masked tensor", masked_tensor(right, torch.ones_like(right, dtype=torch.bool))
    yield "zeros without memory", torch._efficientzerotensor(right.shape)
    freed = right.clone()
    freed.untyped_storage().resize_(0)
    yield "freed", freed
    whole = torch.rand(7 + right.numel())
    view = whole[7:].view(right.shape)
    whole.untyped_storage().resize_(0)
    yield "a view of what was freed", view
    yield "lazily negated", torch._neg_view(right)
    yield "an imaginary part", torch.complex(right, right).conj().imag
    yield "still to arrive", AsyncCollectiveTensor(right)
