"""How right the scores of a classifier are."""

from torch import Tensor


def top(scores: Tensor, labels: Tensor, name: str) -> dict[str, float]:
    """Share of images whose class has the largest score, or one of the five largest, in per cent.

    Args:
        scores: [N, C].
        labels: [N].
        name: of the first figure; the second, given for more than five classes, is name_top5.
    """
    figures = {name: 1}
    if scores.shape[1] > 5:
        figures[f"{name}_top5"] = 5
    best = scores.topk(max(figures.values()), dim=1).indices  # [N, 1 or 5]
    right = (best == labels.unsqueeze(1)).float()
    return {key: 100 * float(right[:, :count].sum(1).mean()) for key, count in figures.items()}


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Area under each class's precision and recall, the mean over classes, in per cent.

    `AP = sum_n (R_n - R_(n-1)) P_n` over the images by falling score; classes without an image in
    `labels` do not count.
    """
    from sklearn.metrics import average_precision_score

    present = labels.unique()
    precisions = [
        average_precision_score((labels == label).numpy(), scores[:, label].numpy())
        for label in present
    ]
    return 100 * float(sum(precisions)) / len(present)
