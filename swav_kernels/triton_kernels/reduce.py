"""Math shared by the kernels, and sums of partial results in an order that never changes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """Tell the compiler that ALIGN divides size, so that rows are read in vectors."""
    return size // ALIGN * ALIGN


@triton.jit
def finite_shift(maximum):
    """What a maximum subtracts before exp2: where all is -inf, 0, for -inf - -inf is NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def online_sum(maximum, total, logits, AXIS: tl.constexpr):
    """Fold a tile into a running maximum and a running sum of exp2(logit - maximum).

    Returns them with the factor that earlier sums were rescaled by, and the tile's terms. NaN and
    +inf make the sum NaN; maxima pass over NaN.
    """
    new_maximum = tl.maximum(maximum, tl.max(logits, AXIS))
    shift = finite_shift(new_maximum)
    rescale = tl.exp2(maximum - shift)
    terms = tl.exp2(logits - tl.expand_dims(shift, AXIS))
    return new_maximum, total * rescale + tl.sum(terms, AXIS), rescale, terms


@triton.jit
def first_index(values, maximum, index, none):
    """Lowest index [BLOCK_K] at which a row [BLOCK_N, BLOCK_K] has its maximum."""
    return tl.min(tl.where(values == maximum[:, None], index[None, :], none), 1)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """Return a @ b + acc; products of the given values are exact, sums are float32.

    A float32 a beside a half b goes to the tensor cores in bfloat16 parts, whose sum is a.
    """
    if PRECISION == "bfloat16":
        acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif a.dtype == b.dtype:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        first = a.to(tl.bfloat16)
        rest = a - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        b_first = b.to(tl.bfloat16)
        # smallest parts first
        if b.dtype == tl.float16:  # 11 bits are two parts of 8
            b_second = (b.to(tl.float32) - b_first.to(tl.float32)).to(tl.bfloat16)
            acc = tl.dot(second, b_second, acc)
            acc = tl.dot(third, b_first, acc)
            acc = tl.dot(first, b_second, acc)
        else:
            acc = tl.dot(third, b_first, acc)
        acc = tl.dot(second, b_first, acc)
        acc = tl.dot(first, b_first, acc)
    return acc


@triton.jit
def load_rows(matrix_ptr, rows, num_rows, columns, num_columns):
    """Any rows x columns of a matrix [num_rows, num_columns]; 0 outside."""
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    offsets = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    return tl.load(matrix_ptr + offsets, mask=inside, other=0.0)


@triton.jit
def load_block(matrix_ptr, first_row, num_rows, columns, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Rows first_row .. first_row + BLOCK of a matrix [num_rows, DIM]; 0 outside.

    Only the block's start needs 64 bits: offsets inside it take half the registers.
    """
    local = tl.arange(0, BLOCK)
    inside = (local < num_rows - first_row)[:, None] & (columns < DIM)[None, :]
    block_ptr = matrix_ptr + tl.cast(first_row, tl.int64) * DIM
    return tl.load(block_ptr + local[:, None] * DIM + columns[None, :], mask=inside, other=0.0)


@triton.jit
def dot_rows(
    a_ptr, a_row, num_a, b_ptr, b_row, num_b,
    DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, STEP_D: tl.constexpr,
):  # fmt: skip
    """Dot products of blocks of rows of a [num_a, DIM] and b [num_b, DIM]: [BLOCK_A, BLOCK_B]."""
    dots = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
    for start in range(0, DIM, STEP_D):
        d = start + tl.arange(0, STEP_D)
        a = load_block(a_ptr, a_row, num_a, d, DIM, BLOCK_A)
        b = load_block(b_ptr, b_row, num_b, d, DIM, BLOCK_B)
        dots = product(a, tl.trans(b), dots, PRECISION)
    return dots


@triton.jit
def sum_over_partials(
    partials_ptr, num_partials, size, columns,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum partials [P, size] over P at columns [BLOCK]."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_partials, BLOCK_P):
        partials = start + tl.arange(0, BLOCK_P)
        total += tl.sum(load_rows(partials_ptr, partials, num_partials, columns, size), 0)
    return total


@triton.jit
def _sum_partials_kernel(
    partials_ptr, out_ptr, num_partials, size, scale,
    BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = sum_over_partials(partials_ptr, num_partials, size, columns, BLOCK_P, BLOCK)
    tl.store(out_ptr + columns, total * scale, mask=columns < size)


# a partial sum's tile: many columns of few partials, or the other way round for a scalar
BLOCK_PARTIALS, BLOCK_COLUMNS = 8, 256
BLOCK_SCALAR_PARTIALS = 1024


def sum_partials(partials: Tensor, scale: float = 1.0) -> Tensor:
    """Return scale * partials.sum(0), float32 [P, ...] -> [...], the same bits in every run."""
    num_partials = partials.shape[0]
    out = torch.empty(partials.shape[1:], dtype=torch.float32, device=partials.device)
    size = out.numel()
    if size == 0:
        return out
    block_p, block = BLOCK_PARTIALS, BLOCK_COLUMNS
    if size == 1:
        block_p, block = BLOCK_SCALAR_PARTIALS, 1
    _sum_partials_kernel[(triton.cdiv(size, block),)](
        partials_ptr=partials,
        out_ptr=out,
        num_partials=num_partials,
        size=size,
        scale=scale,
        BLOCK_P=block_p,
        BLOCK=block,
    )
    return out
