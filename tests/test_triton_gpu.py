"""What only a GPU can show of the Triton kernels: CUDA graphs, and offsets beyond 32 bits."""

import pytest
import torch
from compare import crops, unit_rows
from torch import Tensor

import swav_kernels as sk

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("assign", [(0, 1), (2, 0)])
def test_the_loss_step_in_a_cuda_graph(dtype: torch.dtype, assign: tuple[int, ...]) -> None:
    features, prototypes = (x.to("cuda", dtype).requires_grad_() for x in crops(3, 130, 64, 301))
    queue = unit_rows(len(assign), 20, 64, seed=5, dtype=dtype).to("cuda")

    def step() -> list[Tensor]:
        loss, stats = sk.swav_loss(
            features, prototypes, assign=assign, queue=queue, return_stats=True, backend="triton"
        )
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
        new_features, new_prototypes = crops(3, 130, 64, 301, seed=10 * seed)
        with torch.no_grad():
            features.copy_(new_features)
            prototypes.copy_(new_prototypes)
        graph.replay()
        replayed = [x.clone() for x in captured]
        for got, wanted in zip(replayed, step(), strict=True):
            assert torch.equal(got, wanted)
            assert got.isfinite().all()


def test_sinkhorn_in_a_cuda_graph() -> None:
    scores = torch.randn(2, 130, 301, device="cuda") / 8
    out = torch.empty_like(scores)
    sk.sinkhorn(scores, out=out, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sk.sinkhorn(scores, out=out, backend="triton")
    scores.copy_(torch.randn(scores.shape) / 8)
    graph.replay()
    assert torch.equal(out, sk.sinkhorn(scores, backend="triton"))


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
