"""The model of a run: backbone, projection head and prototypes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import swav_kernels as sk
from swav_trainer import networks
from swav_trainer.config import Config
from swav_trainer.networks.recompute import run

SeeFirst = Callable[[Tensor], None]


class Model(nn.Module):
    """Backbone, head and prototypes of a run."""

    def __init__(self, config: Config, num_channels: int) -> None:
        super().__init__()
        self.backbone, dim = networks.build(config, num_channels)
        # networks of ours know their stages; another one is computed again as a whole
        self._recompute = config.recompute and bool(config.model)
        self.head = nn.Sequential(*_projection(dim, config))
        self.prototypes = sk.Prototypes(config.feature_dim, config.num_prototypes)
        self.other_prototypes = nn.ModuleList(
            sk.Prototypes(config.feature_dim, config.num_prototypes)
            for _ in range(config.heads - 1)
        )

    @property
    def prototype_heads(self) -> list[sk.Prototypes]:
        """All sets of prototypes; there is one but for settings that ask for more."""
        return [self.prototypes, *self.other_prototypes]

    def forward(self, crops: Sequence[Tensor], see_first: SeeFirst | None = None) -> Tensor:
        """Project crops of each size, [V_i B, C, H_i, W_i], to normalised features [V B, D].

        `see_first` gets those of the first size before the other ones are embedded, which then
        go through the head, and its batch norms, by themselves.
        """
        if see_first is None:
            return self._project(crops)
        first = self._project(crops[:1])
        see_first(first.detach())
        return torch.cat([first, self._project(crops[1:])])

    def _project(self, crops: Sequence[Tensor]) -> Tensor:
        features = [
            run(self.backbone, x.contiguous(memory_format=torch.channels_last), self._recompute)
            for x in crops
        ]
        return functional.normalize(self.head(torch.cat(features)), dim=1)


def _projection(dim: int, config: Config) -> list[nn.Module]:
    """Layers from features to projected features."""
    if config.hidden_dim == 0:
        layers: list[nn.Module] = [nn.Linear(dim, config.feature_dim)]
    else:
        layers = [
            nn.Linear(dim, config.hidden_dim),
            nn.BatchNorm1d(config.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden_dim, config.feature_dim),
        ]
    if config.head_batch_norm:
        layers.append(nn.BatchNorm1d(config.feature_dim, affine=False))
    return layers


class Network(nn.Module):
    """Backbone and head of a model, without its prototypes, which only the loss uses."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self._forward = model.forward

    def forward(self, crops: Sequence[Tensor], see_first: SeeFirst | None = None) -> Tensor:
        """As `Model`."""
        return self._forward(crops, see_first)


class Projection(torch.nn.Module):
    """Backbone and head: what is compared with the prototypes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> projected features [B, D]."""
        return self.model([images])
