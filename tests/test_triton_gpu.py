"""What only a GPU can show of the Triton kernels: CUDA graphs, and offsets beyond 32 bits."""

import pytest
import torch
from compare import crops, largest, swav_loss, unit_rows, value_and_gradients
from torch import Tensor

import swav_kernels as sk
from swav_kernels.triton_kernels.stored_loss import fits

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("assign", [(0, 1), (2, 0)])
@pytest.mark.parametrize(
    ("precision", "num_samples", "num_prototypes"),
    [("float32", 130, 301), ("bfloat16", 130, 301), ("bfloat16", 1400, 2050)],  # stored: the last
)
def test_the_loss_step_in_a_cuda_graph(
    dtype: torch.dtype,
    assign: tuple[int, ...],
    precision: str,
    num_samples: int,
    num_prototypes: int,
) -> None:
    shape = 3, num_samples, 64, num_prototypes
    features, prototypes = (x.to("cuda", dtype).requires_grad_() for x in crops(*shape))
    queue = unit_rows(len(assign), 20, 64, seed=5, dtype=dtype).to("cuda")
    assert fits(features, prototypes, False, precision) == (num_samples == 1400)

    def step() -> list[Tensor]:
        loss, stats = sk.swav_loss(
            features, prototypes, assign=assign, queue=queue, precision=precision,
            return_stats=True, backend="triton",
        )  # fmt: skip
        return [loss, *torch.autograd.grad(loss, (features, prototypes)), *stats.values()]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compile outside of the capture
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        new_features, new_prototypes = crops(*shape, seed=10 * seed)
        with torch.no_grad():
            features.copy_(new_features)
            prototypes.copy_(new_prototypes)
        graph.replay()
        replayed = [x.clone() for x in captured]
        for got, wanted in zip(replayed, step(), strict=True):
            assert torch.equal(got, wanted)
            assert got.isfinite().all()


def test_the_loss_of_stored_scores_and_its_gradients() -> None:
    inputs = crops(3, 1400, 64, 2050)
    assert fits(*inputs, False, "bfloat16")
    loss, gradients = value_and_gradients(
        lambda z, c: sk.swav_loss(z, c, precision="bfloat16", backend="triton"),
        *(x.to("cuda") for x in inputs),
    )
    wanted, wanted_gradients = value_and_gradients(swav_loss, *(x.double() for x in inputs))
    assert abs(loss.cpu() - wanted) <= 1e-2 * wanted
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert largest(got.double().cpu() - want) <= 2e-2 * largest(want)


# a sweep that takes the step before it, and one to which a launch brings the potentials
@pytest.mark.parametrize("num_rows", [130, 5000])
def test_sinkhorn_in_a_cuda_graph(num_rows: int) -> None:
    scores = torch.randn(2, num_rows, 301, device="cuda") / 8
    out = torch.empty_like(scores)

    def step() -> Tensor:
        sk.sinkhorn(scores, out=out, backend="triton")
        return sk.sinkhorn_potentials(scores, 4, precision="bfloat16", backend="triton")

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f = step()
    scores.copy_(torch.randn(scores.shape) / 8)
    graph.replay()
    replayed = out.clone(), f.clone()
    for got, wanted in zip(replayed, (sk.sinkhorn(scores, backend="triton"), step()), strict=True):
        assert torch.equal(got, wanted)


def test_more_scores_than_32_bits_count() -> None:
    num_rows, num_prototypes = 70_000, 32_768
    scores = torch.zeros(num_rows, num_prototypes, dtype=torch.bfloat16, device="cuda")
    assert scores.numel() > 2**31
    tail = torch.randn(3, num_prototypes, device="cuda") / 8
    scores[-3:] = tail
    f = sk.sinkhorn_potentials(scores, 2, backend="triton")
    codes = sk.sinkhorn(scores, 2, backend="triton")
    wanted = torch.softmax(scores[-3:].double() / 0.05 + f.double(), -1)
    bound = 2e-6 + 2**-22 * scores[-3:].abs().max().item() / 0.05
    assert (codes[-3:].double() - wanted).abs().max() <= bound
    share = codes.sum(0, dtype=torch.float64) * num_prototypes / num_rows
    assert (share - 1).abs().max() < 0.1  # nearly balanced, so all rows were counted
