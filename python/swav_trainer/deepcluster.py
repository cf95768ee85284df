"""DeepCluster-v2 (Caron et al. 2020, appendix D): codes are clusters of the epoch before.

The features that an epoch leaves behind are clustered by spherical k-means, once for each set of
prototypes; the centroids are the prototypes of the next epoch, in which every crop predicts its
image's cluster. Nothing is learned but the network.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

import swav_kernels as sk
from swav_trainer import ranks, seeds
from swav_trainer.accumulation import parts_of, untouched_buffers
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError
from swav_trainer.model import Model
from swav_trainer.swav import Stats, SwAV, average

if TYPE_CHECKING:
    from swav_trainer.engine import Trainer

ROUNDS = 10  # of k-means
CHUNK = 4096  # rows whose scores are held at a time
UNSEEN = -1  # cluster of an image that the epoch before left out


class DeepCluster:
    """The loss of a run, and the features that its next clusters come from.

    Args:
        config: the settings.
        model: whose prototypes become the centroids.
        num_steps: of the whole run.
        steps: of an epoch.
    """

    learns_prototypes = False
    queue = None

    def __init__(self, config: Config, model: Model, num_steps: int, steps: int) -> None:
        self.config = config
        self.model = model
        self._swav = SwAV(config, model, num_steps, steps)  # for its telemetry
        weight = model.prototypes.weight
        self.share = ranks.share(config.step_images, "--batch-size")
        seen = steps * self.share
        self.features = weight.new_zeros(len(config.assign), seen, config.feature_dim)
        self.rows = torch.full((seen,), UNSEEN, dtype=torch.int64)
        self.clusters = torch.empty(config.heads, 0, dtype=torch.int64)  # of all images

    def begin_epoch(self, trainer: "Trainer", epoch: int) -> None:
        """Cluster the features of the epoch before; before the first one those of a blank network.

        Raises:
            TrainerError: there are fewer images than prototypes.
        """
        seen = trainer.loader.steps * self.config.step_images
        if seen < self.config.num_prototypes:
            raise TrainerError(
                f"deepcluster makes {self.config.num_prototypes} clusters of the {seen} images of "
                "an epoch: lower --num-prototypes"
            )
        if epoch == 0:
            self._look(trainer)
        rows = torch.cat(ranks.gather(self.rows.to(trainer.device))).cpu()
        clusters = torch.full((self.config.heads, len(trainer.dataset.train)), UNSEEN)
        for i, head in enumerate(self.model.prototype_heads):
            features = self.features[i % len(self.features)]
            generator = seeds.torch_generator(self.config.seed, epoch, i)
            centroids = _first_centroids(features, self.config.num_prototypes, generator)
            centroids, nearest = spherical_kmeans(features, centroids)
            head.weight.data.copy_(centroids)
            clusters[i, rows] = torch.cat(ranks.gather(nearest)).cpu()
        self.clusters = clusters

    @torch.no_grad()
    def _look(self, trainer: "Trainer") -> None:
        """Fill in the features of all images, by the network as it is."""
        with untouched_buffers(self.model):
            step, done = 0, 0
            while step < trainer.loader.steps:
                for crops, rows in parts_of(trainer, 0, step):
                    features = trainer.assigned(trainer.project(self.model, crops))
                    self._keep(features, rows, step * self.share + done)
                    done += len(rows)
                step, done = step + 1, 0

    def _keep(self, features: Tensor, rows: Tensor, first: int) -> None:
        self.features[:, first : first + len(rows)] = features
        self.rows[first : first + len(rows)] = rows

    def potentials(self, assign_features: Tensor) -> None:
        """No codes depend on the batch."""

    def loss(self, features: Tensor, rows: Tensor, potentials: None = None) -> tuple[Tensor, Stats]:
        """`part_loss`, and what the features' codes would look like."""
        loss = self.part_loss(features, rows, potentials)
        return loss, self.telemetry(features.detach()[list(self.config.assign)], None, loss)

    def part_loss(self, features: Tensor, rows: Tensor, potentials: None) -> Tensor:
        """Cross-entropy of all crops with their images' clusters, the mean over the heads.

        An image that the epoch before left out counts as 0.
        """
        losses = []
        for clusters, head in zip(self.clusters, self.model.prototype_heads, strict=True):
            scores = sk.prototype_scores(features, head.weight, backend=self._swav.backend)
            wanted = clusters[rows].to(scores.device).expand(len(features), -1)
            total = functional.cross_entropy(
                scores.flatten(0, 1) / self.config.temperature,
                wanted.flatten(),
                ignore_index=UNSEEN,
                reduction="sum",
            )
            losses.append(total / wanted.numel())
        return average(losses)

    def telemetry(self, assign_features: Tensor, potentials: None, loss: Tensor) -> Stats:
        """What the features' balanced codes would look like, as in a SwAV run."""
        stats = self._swav.telemetry(assign_features, self._swav.potentials(assign_features), loss)
        stats["loss_minus_log_k"] = ranks.mean(loss) - math.log(self.config.num_prototypes)
        return stats

    def end_step(self, step: int, assign_features: Tensor, rows: Tensor) -> None:
        """Keep the features [A, B, D] for the next clusters."""
        steps = len(self.rows) // self.share
        self._keep(assign_features, rows, step % steps * self.share)

    def release(self) -> None:
        """Let go of the other processes."""
        self._swav.release()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it; all processes call it."""
        rows = self.rows.to(self.features.device)
        steps = len(rows) // self.share
        # step by step, so that any number of processes finds its images of each step
        features = [x.unflatten(1, (steps, -1)) for x in ranks.gather(self.features)]
        return {
            "deepcluster.features": torch.cat(features, 2),  # [A, steps, images, D]
            "deepcluster.rows": torch.cat([x.view(steps, -1) for x in ranks.gather(rows)], 1),
            "deepcluster.clusters": self.clusters,
        }

    def restore(self, tensors: dict[str, Tensor], processes: int) -> None:
        """Put back what `tensors` returned in that many processes."""
        first = ranks.index() * self.share
        mine = slice(first, first + self.share)
        self.features.copy_(tensors["deepcluster.features"][:, :, mine].flatten(1, 2))
        self.rows.copy_(tensors["deepcluster.rows"][:, mine].flatten())
        self.clusters = tensors["deepcluster.clusters"]


def _first_centroids(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Features of `count` images of all processes, the same in each."""
    every = torch.cat(ranks.gather(features))
    return every[torch.randperm(len(every), generator=generator)[:count]]


@torch.no_grad()
def spherical_kmeans(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster normalised features of all processes by their cosine.

    Args:
        features: [N, D], this process's.
        centroids: [K, D] to begin with, the same in all processes.

    Returns:
        Centroids [K, D], and the nearest one of each feature, [N]. One without features stays.
    """
    for _ in range(ROUNDS):
        nearest = _nearest(features, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, features)
        if ranks.count() > 1:
            dist.all_reduce(sums)
        is_used = sums.norm(dim=1, keepdim=True) > 0
        centroids = torch.where(is_used, functional.normalize(sums, dim=1), centroids)
    return centroids, _nearest(features, centroids)


def _nearest(features: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([(rows @ centroids.T).argmax(1) for rows in features.split(CHUNK)])
