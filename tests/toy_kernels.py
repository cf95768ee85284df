"""Kernels that test the checks, some of them wrong on purpose."""

import triton
import triton.language as tl


@triton.jit
def each_program_its_own(in_ptr, out_ptr):
    """Fine in any order."""
    program = tl.program_id(0)
    tl.store(out_ptr + program, tl.load(in_ptr + program) + 1)


@triton.jit
def reads_its_neighbour(out_ptr):
    """A race: the neighbour writes what this program reads."""
    program = tl.program_id(0)
    other = tl.load(out_ptr + (program + 1) % tl.num_programs(0))
    tl.store(out_ptr + program, other + 1)


@triton.jit
def all_write_the_same_place(out_ptr):
    """A race: the last program wins."""
    tl.store(out_ptr, tl.program_id(0).to(tl.float32))


@triton.jit
def counts_up(counter_ptr, out_ptr):
    """Writes when each program ran."""
    tl.store(out_ptr + tl.program_id(0), tl.load(counter_ptr))
    tl.store(counter_ptr, tl.load(counter_ptr) + 1)


@triton.jit
def copy(in_ptr, out_ptr):
    """A [16, 16] matrix in another dtype."""
    offsets = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + offsets, tl.load(in_ptr + offsets).to(out_ptr.dtype.element_ty))


@triton.jit
def dot(a_ptr, b_ptr, out_ptr):
    """A [16, 16] product."""
    offsets = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + offsets, tl.dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets)))


@triton.jit
def holds_a_lot(a_ptr, b_ptr, out_ptr):
    """Two [128, 128] matrices until their sums are known: more than one warp's registers."""
    offsets = tl.arange(0, 128)[:, None] * 128 + tl.arange(0, 128)[None, :]
    a, b = tl.load(a_ptr + offsets), tl.load(b_ptr + offsets)
    tl.store(out_ptr + offsets, a / tl.sum(a, 1)[:, None] + b / tl.sum(b, 0)[None, :])
