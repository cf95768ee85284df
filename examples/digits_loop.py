"""SwAV in a plain loop, on scikit-learn's digits: `python examples/digits_loop.py`."""

import digits
import torch

import swav_kernels as sk


def main(epochs: int = 15) -> tuple[float, float]:
    """Train; return the score of the untrained network and of the trained one."""
    torch.manual_seed(0)
    images, labels = digits.load()
    backbone, head = digits.backbone(), digits.head()
    prototypes = sk.Prototypes(dim=32, num_prototypes=30)
    parameters = [*backbone.parameters(), *head.parameters(), *prototypes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    before = digits.neighbours(backbone, images, labels)

    for epoch in range(epochs):
        for batch in digits.batches(images, 128):
            prototypes.normalize_()
            # [V, B, D]: the first two crops are those whose codes are computed
            features = torch.stack([head(backbone(crop)) for crop in digits.multi_crop(batch)])
            loss, stats = sk.swav_loss(
                features, prototypes.weight, epsilon=0.03, normalize=True, return_stats=True
            )
            optimizer.zero_grad()
            loss.backward()
            if epoch == 0:
                prototypes.weight.grad = None  # they stand still at first
            optimizer.step()
        print(
            f"epoch {epoch}: loss {loss:.2f}, {stats['prototypes_in_use']} prototypes in use, "
            f"usage entropy {stats['usage_entropy']:.2f} (a collapse is below 0.5)"
        )

    after = digits.neighbours(backbone, images, labels)
    print(f"nearest neighbour, per cent right: {before:.1f} untrained, {after:.1f} trained")
    return before, after


if __name__ == "__main__":
    main()
