"""Several processes and the rest of torch: graphs with collectives, DDP, FSDP2, DTensor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compare import unit_rows
from gloo import run_ranks
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import swav_kernels as sk

pytestmark = pytest.mark.heavy
RANKS, V, B, D, K = 2, 3, 10, 8, 5


class Net(nn.Module):
    """A layer, prototypes, and the loss whose codes are balanced over a group."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, D)
        self.prototypes = sk.Prototypes(D, K)
        self.group = group

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer(images)
        return sk.swav_loss(features, self.prototypes.weight, normalize=True, group=self.group)


def images(num_samples: int = B) -> Tensor:
    return unit_rows(V, num_samples, 12, seed=num_samples).float()


def share_of(rank: int, rows: Tensor) -> Tensor:
    return rows.tensor_split(RANKS, 1)[rank]


def plain(net: Net) -> nn.Module:
    return net


def in_ddp(net: Net) -> nn.Module:
    return DistributedDataParallel(net)


def in_compiled_ddp(net: Net) -> nn.Module:
    return torch.compile(DistributedDataParallel(net), backend="aot_eager")


def in_shards(net: Net) -> nn.Module:
    return fully_shard(net)


def gradients(rank: int, wrap: Callable[[Net], nn.Module]) -> list[Tensor]:
    net = Net(dist.group.WORLD)
    wrapped = wrap(net)
    wrapped(share_of(rank, images())).backward()
    grads = [x.grad for x in net.parameters()]
    return [x.full_tensor() if hasattr(x, "full_tensor") else x for x in grads]


@pytest.mark.parametrize("wrap", [in_ddp, in_compiled_ddp, in_shards])
def test_the_gradient_of_all_ranks_is_that_of_one_process(
    wrap: Callable[[Net], nn.Module], tmp_path: Path
) -> None:
    net = Net(None)
    net(images()).backward()
    wanted = [x.grad for x in net.parameters()]
    for found in run_ranks(RANKS, tmp_path, gradients, wrap):
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def step(features: Tensor, prototypes: Tensor) -> tuple[Tensor, ...]:
    """Every collective there is, named by group and by gather_distributed."""
    group = dist.group.WORLD
    scores = sk.prototype_scores(features, prototypes)
    codes = sk.sinkhorn(scores[:2], group=group)
    f = sk.sinkhorn_potentials(scores[:2], gather_distributed=True)
    g = sk.swav_potentials(features[:2], prototypes, group=group)
    loss, stats = sk.swav_loss(features, prototypes, group=group, return_stats=True)
    return loss, codes, f, g, *stats.values()


def compiled_and_eager(rank: int) -> int:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    prototypes = unit_rows(K, D, seed=1).float()
    for num_samples in range(8, 20):
        features = unit_rows(V, num_samples, D, seed=num_samples).float()
        leaf = share_of(rank, features).clone().requires_grad_()
        results = []
        for function in (step, compiled):
            loss, *rest = function(leaf, prototypes)
            results.append([loss.detach(), *rest, *torch.autograd.grad(loss, leaf)])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
        # and they did balance over both ranks
        whole = sk.sinkhorn(sk.prototype_scores(features, prototypes)[:2])
        torch.testing.assert_close(results[1][1], share_of(rank, whole), rtol=0, atol=2e-6)
    return counter.frame_count


def test_collectives_inside_of_a_graph(tmp_path: Path) -> None:
    assert max(run_ranks(RANKS, tmp_path, compiled_and_eager)) <= 3


def refusals(rank: int) -> list[str]:
    mesh = init_device_mesh("cpu", (RANKS,))
    features, prototypes = unit_rows(V, B, D).float(), unit_rows(K, D, seed=1).float()
    z = distribute_tensor(features, mesh, [Replicate()])
    c = distribute_tensor(prototypes, mesh, [Replicate()])
    found = []
    for call in (
        lambda: sk.swav_loss(z, prototypes),
        lambda: sk.swav_loss(z, c, normalize=True),
        lambda: sk.prototype_scores(features, c),
        lambda: sk.sinkhorn(z[0]),
    ):
        with pytest.raises(TypeError) as error:
            call()
        found.append(str(error.value))
    local = sk.swav_loss(z.to_local(), c.to_local())
    assert torch.equal(local, sk.swav_loss(features, prototypes))
    return found


def test_a_dtensor_is_refused_and_its_local_part_taken(tmp_path: Path) -> None:
    ops = (
        "swav_loss: features",
        "swav_loss: features",
        "prototype_scores: prototypes",
        "sinkhorn: scores",
    )
    for messages in run_ranks(RANKS, tmp_path, refusals):
        for message, start in zip(messages, ops, strict=True):
            assert message.startswith(start)
            assert ".to_local()" in message
