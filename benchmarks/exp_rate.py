"""A Triton kernel that does nothing but exponentials in registers. Imported on a GPU only."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

LENGTH, BLOCK, PROGRAMS_PER_PROCESSOR = 1024, 1024, 16


@triton.jit
def _exp_chains_kernel(out_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.arange(0, BLOCK).to(tl.float32) / BLOCK
    for _ in range(LENGTH):
        x = tl.exp2(x - 1.0)  # goes to 1, and each one needs the one before
    tl.store(out_ptr + offsets, x)


def chains(device: torch.device) -> tuple[int, Callable[[], object]]:
    """Return a number of exponentials, and the call that computes them."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    num_programs = PROGRAMS_PER_PROCESSOR * processors
    out = torch.empty(num_programs * BLOCK, device=device)

    def call() -> object:
        return _exp_chains_kernel[(num_programs,)](out_ptr=out, LENGTH=LENGTH, BLOCK=BLOCK)

    return num_programs * BLOCK * LENGTH, call
