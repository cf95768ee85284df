"""How kernels are launched: block sizes, the target they are chosen for, and the work's split."""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import torch
import triton

_P = ParamSpec("_P")
_R = TypeVar("_R")

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
    max_registers: int | None = None  # of a thread; None leaves it to the compiler

    @property
    def options(self) -> dict[str, int]:
        """Options of the launch."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.max_registers is None else {**options, "maxnreg": self.max_registers}

    def on(self, target: str) -> "Tiles":
        """Return these for a target: NVIDIA's compiler spills for occupancy unless told not to."""
        if not target.startswith("sm_"):
            return self
        return replace(self, max_registers=min(255, 65536 // (32 * self.num_warps)))


def on_its_device(launcher: Callable[_P, _R]) -> Callable[_P, _R]:
    """Launch on the device of the first argument, a tensor: Triton takes the current one."""

    @functools.wraps(launcher)
    def launch(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = args[0].device  # type: ignore[attr-defined]
        if device.type == "cpu":
            return launcher(*args, **kwargs)
        with torch.get_device_module(device).device(device):
            return launcher(*args, **kwargs)

    return launch


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
    """Name how products run: TF32 only if the user allowed it to torch.matmul."""
    if precision == "bfloat16":
        return precision
    # not allow_tf32: reading it raises once this newer setting was made
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
