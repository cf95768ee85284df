"""How kernels are launched: block sizes, the target they are chosen for, and the work's split."""

import functools
import math
import os
from dataclasses import dataclass

import torch
import triton

LOG2E = 1.4426950408889634
SMALLEST_SCALE = 2.0**-126  # a smaller one would be flushed to 0, and 0 * inf is NaN
FILL = 512  # programs that fill a large GPU; a constant, so that all GPUs give the same bits
LONGEST_SUM = 128  # blocks that one running float32 sums up


@dataclass(frozen=True)
class Tiles:
    """Block sizes (powers of two) of one kernel, and the shape of its launch."""

    block_n: int  # samples
    block_k: int  # prototypes
    block_d: int = 16  # dimensions of a result
    step_d: int = 16  # dimensions that a product of features and prototypes takes at a time
    num_warps: int = 4
    num_stages: int = 2
    fill: int = FILL


@functools.cache
def target_of(device: torch.device) -> str:
    """Name what the kernels are compiled for: "interpreter", "sm_90", "gfx942", "xpu", ..."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def power_of_two(size: int, least: int, most: int) -> int:
    """Return the power of two that covers size, within bounds."""
    return min(max(int(triton.next_power_of_2(size)), least), most)


def log2_scale(temperature: float) -> float:
    """Return log2(e) / temperature, so that exp2(scale * s) = exp(s / temperature)."""
    return max(LOG2E / temperature, SMALLEST_SCALE)


def alignment(size: int) -> int:
    """Return the largest power of two up to 16 that divides a row's length (see `aligned`)."""
    return math.gcd(size, 16)


def split(
    num_blocks: int,
    programs_each: int,
    fill: int,
    *,
    longest: int | None = None,
    most: int | None = None,
) -> tuple[int, int]:
    """Split a loop over blocks among programs.

    Args:
        num_blocks: blocks in the loop, > 0.
        programs_each: programs that every split adds to the grid.
        fill: programs that the grid should have.
        longest: most blocks in one program.
        most: most splits, as far as `longest` allows.

    Returns:
        The number of splits, none of them without work, and the blocks of each.
    """
    wanted = min(triton.cdiv(fill, programs_each), num_blocks, most or num_blocks)
    wanted = max(wanted, triton.cdiv(num_blocks, longest or num_blocks))
    blocks_each = triton.cdiv(num_blocks, wanted)
    return triton.cdiv(num_blocks, blocks_each), blocks_each


def dot_precision(precision: str) -> str:
    """Name how products run: TF32 only if the user allowed it."""
    if precision == "bfloat16":
        return precision
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
