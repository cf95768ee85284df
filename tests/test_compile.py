"""Under torch.compile, in exported programs and in modes that record ops: the numbers of eager."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compare import crops, random_codes, unit_rows
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import swav_kernels as sk

pytestmark = pytest.mark.heavy
TESTS = Path(__file__).parent


def step(features: Tensor, prototypes: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Every op, one after the other, and what a model has between them."""
    z = nn.functional.normalize(features * 1.0, dim=-1)
    scores = sk.prototype_scores(z, prototypes, normalize=True)
    codes = sk.sinkhorn(scores[:2], sample_weights=weights)
    f = sk.sinkhorn_potentials(scores[0], 2)
    pair = sk.swapped_cross_entropy(scores, codes)
    row = sk.prototype_cross_entropy(scores[0], codes[1], weights=weights)
    queue = z[:2, :1].detach()
    g = sk.swav_potentials(z[:2], prototypes, queue=queue, normalize=True)
    loss, stats = sk.swav_loss(
        features, prototypes, queue=queue, normalize=True, return_stats=True, assign=(1, 0)
    )
    return pair + row + loss, codes, f, g, *stats.values()


def with_gradients(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs[:2]]
    loss, *rest = function(*leaves, *inputs[2:])
    return [loss.detach(), *rest, *torch.autograd.grad(loss, leaves)]


def batch(num_samples: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    features, prototypes = crops(3, num_samples, 8, 5, seed=num_samples)
    return features.to(dtype), prototypes, torch.rand(num_samples) + 0.1


def test_compiled_whole_for_20_batch_sizes() -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for num_samples in range(5, 25):
        inputs = batch(num_samples)
        wanted = with_gradients(step, *inputs)
        for got, want in zip(with_gradients(compiled, *inputs), wanted, strict=True):
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 3  # the first, and at most 2 more


def test_autocast_and_out_in_a_graph() -> None:
    def codes_and_loss(features: Tensor, prototypes: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            sk.sinkhorn(features[0] @ prototypes.t(), out=out)
            return sk.swav_loss(features, prototypes), out + 1

    features, prototypes, _ = batch(9, torch.bfloat16)
    results = []
    for function in (codes_and_loss, torch.compile(codes_and_loss, fullgraph=True)):
        out = torch.zeros(9, 5)
        results.append([*with_gradients(function, features, prototypes, out), out])
    assert results[0][-2].dtype == torch.float32
    assert results[0][2].dtype == torch.bfloat16
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_a_wrong_call_says_why_while_it_is_compiled() -> None:
    compiled = torch.compile(lambda s: sk.sinkhorn(s, epsilon=-1.0), fullgraph=True)
    with pytest.raises(Exception, match="sinkhorn: epsilon must be a positive number .* got -1"):
        compiled(torch.rand(4, 3))


class Head(nn.Module):
    """What is exported: codes, scores and the loss of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = sk.Prototypes(8, 5)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        scores = self.prototypes(features)
        loss = sk.swav_loss(features, self.prototypes.weight, normalize=True)
        return scores, sk.sinkhorn(scores[0]), loss


def test_exported_with_a_batch_of_any_size_and_loaded_elsewhere(tmp_path: Path) -> None:
    head = Head().eval()
    any_size = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        head, (unit_rows(2, 6, 8).float(),), dynamic_shapes=({1: any_size},)
    )
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "swav_kernels.swav_loss.default" in names
    torch.export.save(program, tmp_path / "head.pt2")
    other = unit_rows(2, 17, 8, seed=3).float()
    torch.save((other, head(other)), tmp_path / "wanted.pt")
    code = (
        "import torch, swav_kernels\n"
        f"features, wanted = torch.load(r'{tmp_path / 'wanted.pt'}')\n"
        f"got = torch.export.load(r'{tmp_path / 'head.pt2'}').module()(features)\n"
        "assert all(map(torch.equal, got, wanted))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_modes_see_the_ops() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.add(str(op))
            return op(*args, **(kwargs or {}))

    seen: set[str] = set()
    inputs = batch(6)
    wanted = with_gradients(step, *inputs)
    with Names():
        got = with_gradients(step, *inputs)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    ops = ("prototype_scores", "sinkhorn", "swapped_cross_entropy", "swav_loss")
    assert {f"swav_kernels.{op}.default" for op in ops} <= seen


def test_shapes_without_numbers_and_traced_graphs() -> None:
    inputs = batch(6)
    wanted = with_gradients(step, *inputs)
    with FakeTensorMode() as mode:
        fake = with_gradients(step, *map(mode.from_tensor, inputs))
    for x, y in zip(fake, wanted, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    graph = make_fx(step, tracing_mode="symbolic")(*inputs)
    other = batch(11)
    for x, y in zip(graph(*other), step(*other), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_codes_in_a_compiled_graph_have_no_gradient() -> None:
    scores = random_codes(6, 5).requires_grad_()
    compiled = torch.compile(lambda s: sk.sinkhorn(s), backend="aot_eager", fullgraph=True)
    assert not compiled(scores).requires_grad
