"""What is reported: each defect with the reason and the call that replaces it."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A defect at a line of a file."""

    path: str
    line: int
    rule: str


class Rule(NamedTuple):
    """A defect in a few words, why it matters, and what to write in its place."""

    title: str
    why: str
    use: str


RULES = {
    "row-maximum": Rule(
        "a row maximum subtracted before the first column sums",
        "subtracting each sample's maximum before the column sums changes the codes: only a "
        "constant or a term per prototype cancels in a few iterations",
        "swav_kernels.sinkhorn(scores, iterations, epsilon): stable at any scale without a shift",
    ),
    "sums-per-rank": Rule(
        "column sums of one rank where torch.distributed is used",
        "the column sums stay on one rank although torch.distributed is used, so each rank "
        "balances only its own rows",
        "swav_kernels.sinkhorn(scores, iterations, epsilon, gather_distributed=True), or group=...",
    ),
    "half-exp": Rule(
        "exponentials in half precision",
        "exponentials in half precision: exp(1 / 0.05) is infinite in float16, and bfloat16 keeps "
        "three digits of it",
        "swav_kernels.sinkhorn(scores, iterations, epsilon): half scores, float32 inside",
    ),
    "not-normalised": Rule(
        "features or prototypes that are not normalised before their scores",
        "scores of features or prototypes that no code here L2-normalises: epsilon and temperature "
        "are made for cosines, and long vectors win every sample",
        "swav_kernels.Prototypes(dim, num_prototypes) with normalize_() before each step, and "
        "torch.nn.functional.normalize(features, dim=-1); or swav_kernels.swav_loss(..., "
        "normalize=True)",
    ),
    "biased-prototypes": Rule(
        "a prototypes layer with a bias",
        "a bias on the prototypes is no part of a cosine: it lets a prototype win whatever the "
        "features are",
        "swav_kernels.Prototypes(dim, num_prototypes), or nn.Linear(..., bias=False)",
    ),
}
