"""lightly's own SwAV with its Sinkhorn replaced: `python examples/lightly_swav.py`, with lightly.

One line is ours: `sk.patch("lightly")`. It stands before anything else takes lightly's function.
"""

import digits
import torch
from torch.nn.functional import normalize

import swav_kernels as sk

sk.patch("lightly")

from lightly.loss import SwaVLoss  # noqa: E402
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes  # noqa: E402


def main(epochs: int = 15) -> tuple[float, float]:
    """Train; return the score of the untrained network and of the trained one."""
    torch.manual_seed(0)
    images, labels = digits.load()
    backbone = digits.backbone()
    head, prototypes = SwaVProjectionHead(64, 128, 32), SwaVPrototypes(32, n_prototypes=30)
    # or, in one fused loss: criterion = sk.compat.lightly.SwaVLoss(sinkhorn_epsilon=0.03)
    criterion = SwaVLoss(sinkhorn_epsilon=0.03)
    parameters = [*backbone.parameters(), *head.parameters(), *prototypes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    before = digits.neighbours(backbone, images, labels)

    for epoch in range(epochs):
        for batch in digits.batches(images, 128):
            prototypes.normalize()
            features = [head(backbone(crop)) for crop in digits.multi_crop(batch)]
            scores = [prototypes(normalize(z, dim=1), epoch) for z in features]
            loss = criterion(scores[:2], scores[2:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.2f}")

    after = digits.neighbours(backbone, images, labels)
    print(f"nearest neighbour, per cent right: {before:.1f} untrained, {after:.1f} trained")
    return before, after


if __name__ == "__main__":
    main()
