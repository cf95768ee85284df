"""A nearest-neighbour figure that is cheap enough to be taken while a run trains."""

import dataclasses
from collections.abc import Sequence

import torch

from swav_trainer import ranks, seeds
from swav_trainer.config import Config
from swav_trainer.data import Dataset, Part
from swav_trainer.errors import TrainerError
from swav_trainer.evaluation import NEIGHBOURS, part_features
from swav_trainer.protocols import neighbours
from swav_trainer.protocols.subset import need_labels

TRAIN_IMAGES, TEST_IMAGES = 2000, 1000


def knn(
    config: Config, dataset: Dataset, backbone: torch.nn.Module, counts: Sequence[int]
) -> dict[int, float]:
    """Vote of neighbours in the whole images' features, for each number of them, in per cent.

    All processes of a run call it; each embeds its share of the images. The network's training mode
    is left as it was.
    """
    num_classes = need_labels(dataset, "the vote of neighbours")
    device, training = next(backbone.parameters()).device, backbone.training
    features = []
    for part in (dataset.train, dataset.test):
        if len(part) < ranks.count():
            raise TrainerError(f"{len(part)} images cannot be shared by {ranks.count()} processes")
        mine = neighbours.share(len(part))
        features.append(part_features(config, part, backbone, mine).to(device))
    backbone.train(training)
    mine = neighbours.share(len(dataset.train))
    labels = dataset.train.labels[mine.start : mine.stop]
    return neighbours.accuracy(
        (features[0], labels), (features[1], dataset.test.labels), num_classes, counts
    )


def online_knn(
    config: Config,
    dataset: Dataset,
    backbone: torch.nn.Module,
    train_images: int = TRAIN_IMAGES,
    test_images: int = TEST_IMAGES,
) -> float:
    """Vote of 20 neighbours, as `knn`, on a part of the images, the same each time, in per cent.

    Raises:
        TrainerError: the images have no labels.
    """
    part_of_it = dataclasses.replace(
        dataset,
        train=_some(dataset.train, train_images, config.seed),
        test=_some(dataset.test, test_images, config.seed),
    )
    return knn(config, part_of_it, backbone, (NEIGHBOURS,))[NEIGHBOURS]


def _some(part: Part, most: int, seed: int) -> Part:
    if len(part) <= most:
        return part
    rows = torch.randperm(len(part), generator=seeds.torch_generator(seed, len(part)))
    return part.take(rows[:most])
