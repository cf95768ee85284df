"""SwAV under Lightning Fabric, codes balanced over all its processes.

Needs lightning-fabric. `python examples/fabric_swav.py 2 15`: two processes on a CPU, 15 epochs.
`Fabric(accelerator="gpu", devices=8)` is the same loop on eight GPUs; under Accelerate only the
lines with `fabric` differ.
"""

import sys

import digits
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

import swav_kernels as sk


class Network(nn.Module):
    """Crops -> features [V, B, D]; the prototypes are trained with it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = digits.backbone(), digits.head()
        self.prototypes = sk.Prototypes(dim=32, num_prototypes=30)

    def forward(self, crops: list[Tensor]) -> Tensor:
        return torch.stack([self.head(self.backbone(crop)) for crop in crops])


def main(processes: int = 1, epochs: int = 15) -> tuple[float, float]:
    """Train; return the score of the untrained network and of the trained one."""
    strategy = "ddp" if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    fabric.launch()
    group = dist.group.WORLD if fabric.world_size > 1 else None
    torch.manual_seed(0)  # the same network and the same order of images everywhere
    images, labels = digits.load()
    network = Network()
    network, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=5e-3))
    before = digits.neighbours(network.backbone, images, labels)

    for epoch in range(epochs):
        for batch in digits.batches(images, 128):
            # each process takes its part; batch norms see no more than that
            part = batch[fabric.global_rank :: fabric.world_size]
            network.prototypes.normalize_()
            features = network(digits.multi_crop(part))
            loss = sk.swav_loss(
                features, network.prototypes.weight, epsilon=0.03, normalize=True, group=group
            )
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {loss:.2f}")

    after = digits.neighbours(network.backbone, images, labels)
    fabric.print(f"nearest neighbour, per cent right: {before:.1f} untrained, {after:.1f} trained")
    return before, after


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
