"""Which crops an image is seen in: `2x224+6x96` are two of 224 pixels and six of 96."""

import re
from dataclasses import dataclass

from swav_trainer.errors import TrainerError

SMALLEST = 4  # pixels

Area = tuple[float, float]  # smallest and largest share of the image


@dataclass(frozen=True)
class Crops:
    """Crops of one kind."""

    count: int
    size: int  # pixels of a side
    area: Area

    def __str__(self) -> str:
        """As the user writes them."""
        return f"{self.count}x{self.size}"


def parse(crops: str, areas: tuple[Area, ...]) -> tuple[Crops, ...]:
    """Return the kinds of crops that the settings name.

    Raises:
        TrainerError: they are none, or an area is missing or wrong.
    """
    kinds = []
    for text in crops.split("+"):
        match = re.fullmatch(r"\s*([1-9][0-9]{0,3})x([1-9][0-9]{0,4})\s*", text, re.ASCII)
        if match is None or int(match[2]) < SMALLEST:
            raise TrainerError(
                f"crops must be kinds of number x pixels, {SMALLEST} pixels at least, as in "
                f"2x224+6x96, got {crops!r}"
            )
        kinds.append((int(match[1]), int(match[2])))
    if len(areas) != len(kinds):
        raise TrainerError(
            f"areas must hold two shares of the image for each of the {len(kinds)} kinds of crops "
            f"{crops}, got {len(areas)} pairs"
        )
    for low, high in areas:
        if not 0 < low <= high <= 1:
            raise TrainerError(
                f"areas must be rising shares of the image, above 0 to 1, got {low:g} and {high:g}"
            )
    return tuple(Crops(*kind, area) for kind, area in zip(kinds, areas, strict=True))


def check_assign(assign: tuple[int, ...], kinds: tuple[Crops, ...]) -> None:
    """Raise TrainerError unless these are different crops of an image that has two at least."""
    total = sum(kind.count for kind in kinds)
    if total < 2:
        raise TrainerError("crops must be two at least: each one predicts another one's codes")
    if not assign or len(set(assign)) < len(assign) or not all(0 <= a < total for a in assign):
        raise TrainerError(
            f"assign must hold different numbers of crops, from 0 to {total - 1}, got "
            f"{list(assign)}"
        )
