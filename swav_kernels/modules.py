"""nn.Modules around the ops: trainable prototypes, the feature queue, the loss."""

from typing import Any

import torch
from torch import Tensor, nn

from swav_kernels import checks
from swav_kernels.ops.prototype_scores import prototype_scores
from swav_kernels.ops.swav_loss import swav_loss


class Prototypes(nn.Module):
    """K trainable L2-normalised prototypes; `forward` scores features against them.

    Args:
        dim: D, the length of a feature.
        num_prototypes: K.

    Example:
        >>> Prototypes(dim=16, num_prototypes=5)(torch.randn(3, 8, 16)).shape
        torch.Size([3, 8, 5])

    Source: Caron et al. 2020 (arXiv 2006.09882), section 3.1.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__()
        for argument, value in (("dim", dim), ("num_prototypes", num_prototypes)):
            _check_size("Prototypes", argument, value)
        self.weight = nn.Parameter(torch.empty(num_prototypes, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw prototypes uniformly from the unit sphere."""
        nn.init.normal_(self.weight)
        self.normalize_()

    @torch.no_grad()
    def normalize_(self) -> None:
        """L2-normalise the rows in place; call it before each step, as the paper does."""
        self.weight.copy_(checks.normalize_rows(self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores [..., K] of features [..., D]."""
        return prototype_scores(features, self.weight)

    def extra_repr(self) -> str:
        """Sizes, for print(module)."""
        num_prototypes, dim = self.weight.shape
        return f"dim={dim}, num_prototypes={num_prototypes}"


class FeatureQueue(nn.Module):
    """The last L features of each assign crop: a ring buffer that only ever shows filled rows.

    Args:
        length: L, the most rows it holds for a crop.
        dim: D, the length of a feature.
        num_crops: A, the number of assign crops.

    Example:
        >>> queue = FeatureQueue(length=8, dim=4)
        >>> queue.rows() is None
        True
        >>> queue.update(torch.ones(2, 3, 4))
        >>> queue.rows().shape
        torch.Size([2, 3, 4])

    Source: Caron et al. 2020 (arXiv 2006.09882), section 4.1, "working with small batches".
    """

    storage: Tensor

    def __init__(self, length: int, dim: int, num_crops: int = 2) -> None:
        super().__init__()
        for argument, value in (("length", length), ("dim", dim), ("num_crops", num_crops)):
            _check_size("FeatureQueue", argument, value)
        self.register_buffer("storage", torch.zeros(num_crops, length, dim))
        # Python numbers: a tensor would cost a host synchronisation at each slice
        self._next = 0
        self._filled = 0

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Store features [A, B, D] as the newest rows, over the oldest.

        Raises:
            ValueError: the shape does not fit, or B exceeds the length.
        """
        op = "FeatureQueue.update"
        checks.check_tensor(op, "features", features, "[A, B, D]")
        num_crops, length, dim = self.storage.shape
        checks.check_same_device(op, storage=self.storage, features=features)
        batch = features.shape[1]
        checks.check_shape(op, "features", features, (num_crops, batch, dim), "[A, B, D]")
        if batch > length:
            raise ValueError(
                f"{op}: features hold {batch} rows a crop but the queue's length is {length}; "
                "a batch must fit: make the queue longer"
            )
        until_wrap = min(batch, length - self._next)
        self.storage[:, self._next : self._next + until_wrap] = features[:, :until_wrap]
        self.storage[:, : batch - until_wrap] = features[:, until_wrap:]
        self._next = (self._next + batch) % length
        self._filled = min(self._filled + batch, length)

    def rows(self) -> Tensor | None:
        """Return the filled rows [A, filled, D], in no particular order; None while it is empty.

        It is a view: use it before the next update.
        """
        return self.storage[:, : self._filled] if self._filled else None

    def get_extra_state(self) -> Tensor:
        """Position and fill level, saved with the state dict."""
        return torch.tensor([self._next, self._filled])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore position and fill level; called by load_state_dict.

        Raises:
            TypeError, ValueError: the state is not of a queue of this length.
        """
        op, length = "FeatureQueue.set_extra_state", self.storage.shape[1]
        if not isinstance(state, Tensor) or state.dtype != torch.int64 or state.shape != (2,):
            raise TypeError(
                f"{op}: state must be an int64 tensor [2], got {checks.shown(state)}; "
                "load what state_dict() of a FeatureQueue gave"
            )
        position, filled = state.tolist()
        is_filling = 0 <= position == filled < length  # the next row is the first empty one
        if not (is_filling or (filled == length and 0 <= position < length)):
            raise ValueError(
                f"{op}: state must be a position and a fill level of a queue of length {length}, "
                f"got {[position, filled]}; the checkpoint belongs to another queue"
            )
        self._next, self._filled = position, filled

    def extra_repr(self) -> str:
        """Sizes, for print(module)."""
        num_crops, length, dim = self.storage.shape
        return f"length={length}, dim={dim}, num_crops={num_crops}"


class SwAVLoss(nn.Module):
    """`swav_loss` with its settings kept: `SwAVLoss(**keywords)(features, prototypes, queue=None)`.

    Args:
        **keywords: of `swav_loss`, except queue.

    Example:
        >>> loss = SwAVLoss(epsilon=0.03, normalize=True)
        >>> loss(torch.randn(2, 8, 4), torch.eye(4)).shape
        torch.Size([])
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        known = set(swav_loss.__wrapped__.__kwdefaults__) - {"queue"}  # type: ignore[attr-defined]
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"SwAVLoss: unknown keyword {name!r}; choose from {', '.join(sorted(known))}"
                )
        self.keywords = keywords

    def forward(
        self, features: Tensor, prototypes: Tensor, queue: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return what `swav_loss` returns."""
        return swav_loss(features, prototypes, queue=queue, **self.keywords)

    def extra_repr(self) -> str:
        """Settings, for print(module)."""
        return ", ".join(f"{name}={value!r}" for name, value in self.keywords.items())


def _check_size(owner: str, argument: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**63:
        raise ValueError(
            f"{owner}: {argument} must be an integer of at least 1 and below 2**63, "
            f"got {checks.shown(value)}; it is a size of the tensor that is made"
        )
