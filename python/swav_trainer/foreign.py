"""Checkpoints of the released SwAV code and of VISSL, by our names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from swav_trainer.errors import TrainerError, printable

# their names -> ours
RULES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        # the released code: all in one, each name after "module." if DistributedDataParallel was on
        (r"(?:module\.)?((?:conv1|bn1|layer[1-4])\..+)", r"backbone.\1"),
        (r"(?:module\.)?projection_head\.(.+)", r"head.\1"),
        (r"(?:module\.)?prototypes\.(?:prototypes0\.)?weight", "prototypes.weight"),
        # VISSL: trunk and heads
        (r"trunk\._feature_blocks\.(.+)", r"backbone.\1"),
        (r"heads\.0\.projection_head\.(.+)", r"head.\1"),
        (r"heads\.0\.prototypes0\.weight", "prototypes.weight"),
    )
)
WIDTHS = {64: "resnet50", 128: "resnet50w2", 256: "resnet50w4", 320: "resnet50w5"}
WITNESSES = (  # one of each part, whose shapes tell the sizes
    "backbone.conv1.weight", "backbone.layer1.0.conv3.weight", "backbone.layer3.5.conv3.weight",
    "head.0.weight", "head.1.running_mean", "head.3.weight", "prototypes.weight",
)  # fmt: skip
MOST_NAMES = 5  # in a message


def translate(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by the names of `Model`.

    Args:
        content: what the file holds.
        source: its name, for the message.

    Raises:
        TrainerError: it has another layout.
    """
    try:
        root = content["classy_state_dict"]["base_model"]["model"]
    except (KeyError, TypeError):
        root = content.get("state_dict", content)
    tensors = dict(_flat(root, ""))
    result, strangers = {}, []
    for name, tensor in tensors.items():
        ours = next((m.expand(to) for rule, to in RULES if (m := rule.fullmatch(name))), None)
        if ours is None:
            strangers.append(name)
        else:
            result[ours] = tensor
    missing = [name for name in WITNESSES if name not in result]
    if strangers or missing:
        first = strangers or list(tensors) or [str(name) for name in content]
        names = ", ".join(printable(name) for name in first[:MOST_NAMES]) or "none"
        lacks = f", and lacks {', '.join(missing)}" if missing else ""
        raise TrainerError(
            f"{source} has no layout of SwAV's released code or VISSL's: it holds the names {names}"
            f"{', ...' if len(first) > MOST_NAMES else ''}{lacks}"
        )
    return result


def sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the settings that the shapes tell.

    Raises:
        TrainerError: the network is none of ours.
    """
    matrices = [tensors[name].dim() for name in ("head.0.weight", "prototypes.weight")]
    channels = (*tensors["backbone.conv1.weight"].shape, 0)[0]
    if matrices != [2, 2]:
        raise TrainerError(
            f"{source} is damaged: the weights of its head and prototypes must be matrices, have "
            f"{matrices[0]} and {matrices[1]} dimensions"
        )
    if channels not in WIDTHS:
        raise TrainerError(
            f"{source} holds a ResNet with {channels} channels first: known are "
            f"{', '.join(f'{width} ({arch})' for width, arch in WIDTHS.items())}"
        )
    return {
        "arch": WIDTHS[channels],
        "hidden_dim": tensors["head.0.weight"].shape[0],
        "feature_dim": tensors["prototypes.weight"].shape[1],
        "num_prototypes": tensors["prototypes.weight"].shape[0],
    }


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested mappings, by their path with dots."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flat(value, f"{path}.{name}" if path else str(name))
