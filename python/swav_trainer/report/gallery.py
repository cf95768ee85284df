"""What the prototypes stand for, and what the crops look like."""

import dataclasses
import html
from collections.abc import Sequence

import torch

from swav_trainer.config import Config
from swav_trainer.loader import Loader
from swav_trainer.report.images import address, thumbnails, to_pixels
from swav_trainer.report.view import Sight

IMAGES = 10  # of a prototype
THUMBNAIL = 56  # pixels
CROPPED = 4  # images whose crops are shown


def prototypes(config: Config, sight: Sight, rows: int) -> str:
    """For the best-filled prototypes the training images nearest to each."""
    part, classes = sight.dataset.train, sight.dataset.classes
    similarity = sight.projected @ sight.prototypes.T  # [N, K]
    nearest = similarity.argmax(1)
    fill = torch.bincount(nearest, minlength=similarity.shape[1])
    most = int(fill.max())
    shown, common_labels = [], 0
    for prototype in fill.argsort(descending=True).tolist():
        count = int(fill[prototype])
        if count == 0:
            break
        labels = part.labels[nearest == prototype]
        common = int(labels.mode().values)
        share = float((labels == common).float().mean())
        common_labels += round(share * count)
        if len(shown) == rows:
            continue
        column = torch.where(nearest == prototype, similarity[:, prototype], -2)
        chosen = column.topk(min(IMAGES, count)).indices.tolist()
        text = f"{count} images"
        if sight.is_labelled:
            text += f", {100 * share:.0f} % are {html.escape(classes[common])}"
        shown.append(
            f'<div class="prototype"><div class="images">{_images(config, sight, chosen)}</div>'
            f'<div class="fill" style="width:{100 * count / most:.0f}%"></div><p>{text}</p></div>'
        )
    used = int((fill > 0).sum())
    words = f"{used} of {len(fill)} prototypes are the nearest of some training image."
    if sight.is_labelled:
        purity = 100 * common_labels / len(part)
        words += f" {purity:.1f} % of the images carry the commonest label of their prototype."
    return f'<p class="hint">{words}</p><div class="gallery">{"".join(shown)}</div>'


def _images(config: Config, sight: Sight, rows: Sequence[int]) -> str:
    part, classes = sight.dataset.train, sight.dataset.classes
    pictures = thumbnails(part, rows, THUMBNAIL, config)
    tags = []
    for row, picture in zip(rows, pictures, strict=True):
        label = html.escape(classes[int(part.labels[row])], quote=True)
        tags.append(f'<img alt="{label}" title="{label}" src="{address(picture)}">')
    return "".join(tags)


def crops(config: Config, sight: Sight) -> str:
    """The crops of a few training images, as the loader gives them to the network."""
    part = sight.dataset.train
    if not isinstance(part.images, torch.Tensor):
        # a file's crops are drawn by its own seed: the first few images need no whole batch
        few = min(CROPPED, len(part))
        config = dataclasses.replace(config, batch_size=few, effective_batch=0, queue_length=0)
    loader = Loader(part, config)
    if loader.steps == 0:
        return "<p>Too few images for a batch.</p>"
    kinds = next(loader.micro_batches(0, 0))  # of each size [count B, C, H, W]
    images = len(kinds[0]) // config.crop_kinds[0].count
    lines = []
    for image in range(min(CROPPED, images)):
        tags = []
        for crop in kinds:
            size = crop.shape[-1]
            for picture in to_pixels(crop[image::images]):
                tags.append(f'<img alt="crop of {size} pixels" title="{size} pixels" '
                            f'style="--size:{size}" src="{address(picture)}">')  # fmt: skip
        lines.append(f'<div class="crops">{"".join(tags)}</div>')
    largest = max(crop.shape[-1] for crop in kinds)
    words = " and ".join(f"{len(crop) // images} of {crop.shape[-1]} pixels" for crop in kinds)
    return (
        f'<p class="hint">A row an image: {words}.</p>'
        f'<div class="cropped" style="--largest:{largest}">{"".join(lines)}</div>'
    )
