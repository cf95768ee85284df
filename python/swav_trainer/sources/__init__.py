"""Where images come from: a module for each name or prefix that `--data` knows.

Each has `load(config, place) -> Dataset`, the place being what stands behind the prefix.
"""

from swav_trainer.errors import TrainerError, did_you_mean, printable

IN_MEMORY = ("mnist5k", "digits")
FORMS = {
    "folder": "PATH",
    "webdataset": "PATTERN",
    "hf": "PATH",
    "torchvision": "CLASS,root=PATH",
    "synthetic": "COUNTxSIZE",
}


def parse(data: str) -> tuple[str, str]:
    """Split `prefix:place`; a name has no place.

    Raises:
        TrainerError: the data are of no known kind.
    """
    if data in IN_MEMORY:
        return data, ""
    kind, colon, place = data.partition(":")
    if not colon or kind not in FORMS:
        known = (*IN_MEMORY, *(f"{prefix}:{form}" for prefix, form in FORMS.items()))
        prefixes = (*IN_MEMORY, *(f"{prefix}:" for prefix in FORMS))
        raise TrainerError(
            f"unknown data {printable(data)!r}: choose from {', '.join(known)}"
            f"{did_you_mean(kind + colon, prefixes)}"
        )
    return kind, place


def options(place: str) -> tuple[str, dict[str, str]]:
    """Split `name,key=value,...`.

    Raises:
        TrainerError: a part behind the name is no key=value.
    """
    name, *parts = place.split(",")
    for part in parts:
        if "=" not in part:
            raise TrainerError(f"{printable(part)!r} of {printable(place)!r} is not key=value")
    return name, dict(part.split("=", 1) for part in parts)
