"""A DINO-style head: a slow teacher's balanced codes, on digits: `python examples/dino_digits.py`.

Teacher and student have their own prototypes and temperatures. The teacher is a moving average of
the student and sees the two large crops; the student predicts its codes of one from all others.
"""

import copy
from itertools import product

import digits
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import swav_kernels as sk

MOMENTUM = 0.95
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04


class Network(nn.Module):
    """Crops [B, 1, S, S] -> scores [B, K]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = digits.backbone(), digits.head()
        self.prototypes = sk.Prototypes(dim=32, num_prototypes=30)

    def forward(self, crop: Tensor) -> Tensor:
        return self.prototypes(normalize(self.head(self.backbone(crop)), dim=-1))


def main(epochs: int = 15) -> tuple[float, float]:
    """Train; return the score of the untrained network and of the teacher."""
    torch.manual_seed(0)
    images, labels = digits.load()
    student = Network()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    before = digits.neighbours(teacher.backbone, images, labels)

    for epoch in range(epochs):
        for batch in digits.batches(images, 128):
            crops = digits.multi_crop(batch)
            student.prototypes.normalize_()
            with torch.no_grad():
                scores = torch.stack([teacher(crop) for crop in crops[:2]])
            codes = sk.sinkhorn(scores, epsilon=TEACHER_TEMPERATURE)  # each crop by itself
            predicted = [student(crop) for crop in crops]
            pairs = [(i, v) for i, v in product(range(2), range(len(crops))) if i != v]
            losses = [
                sk.prototype_cross_entropy(predicted[v], codes[i], STUDENT_TEMPERATURE)
                for i, v in pairs
            ]
            loss = torch.stack(losses).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 1 - MOMENTUM)
                teacher.prototypes.normalize_()
        print(f"epoch {epoch}: loss {loss:.2f}")

    after = digits.neighbours(teacher.backbone, images, labels)
    print(f"nearest neighbour, per cent right: {before:.1f} untrained, {after:.1f} teacher")
    return before, after


if __name__ == "__main__":
    main()
