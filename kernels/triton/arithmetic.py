"""Arithmetic that all kernels share: narrow operands of matrix products, norms, and sums that stay exact.

In 16-bit mode products take 16-bit operands and add in fp32. Where that rounds too much, the wider operand is cut in
two 16-bit parts, a high and a low one. In fp32 mode operands are fp32, as `PRECISION` says.
"""

import triton
import triton.language as tl

# Triton's interpreter, which runs kernels without a GPU, multiplies the bits of bfloat16 numbers as if they were
# integers, and cuts off where the hardware rounds to nearest.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Round fp32 x to DTYPE, to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """`a [m, k] @ b [k, n] + accumulator`, of operands that are narrow already."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def part_of(x, part, PARTS: tl.constexpr):
    """Columns `[m, D / PARTS]` of x, from those of part number `part`."""
    cut = tl.reshape(x, [x.shape[0], PARTS, x.shape[1] // PARTS])
    mine = (tl.arange(0, PARTS) == part)[None, :, None]
    return tl.sum(tl.where(mine, cut, 0.0), 1)


@triton.jit
def dot_rows(a, b, accumulator, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """`a [m, D] @ b [n, D]^T + accumulator`; operands that are not narrow yet are rounded.

    Many fp32 features come in parts: a product of three TF32 products holds both halves of both operands in registers,
    in every warp, and more than 32 or 64 features do not fit.
    """
    if DTYPE == tl.float32 and a.shape[1] > 64 and PRECISION == "tf32x3":
        PARTS: tl.constexpr = a.shape[1] // 32
        for part in tl.range(0, PARTS, disable_licm=True):
            accumulator = dot(part_of(a, part, PARTS), tl.trans(part_of(b, part, PARTS)), accumulator, PRECISION)
    else:
        if a.dtype != DTYPE:
            a = narrow(a, DTYPE)
        b = tl.trans(b)
        if b.dtype != DTYPE:
            b = narrow(b, DTYPE)
        accumulator = dot(a, b, accumulator, PRECISION)
    return accumulator


@triton.jit
def dot_wide(a, b, accumulator, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """The same where DTYPE holds a exactly and b is fp32: b's low part counts too."""
    high = narrow(b, DTYPE)
    result = dot(narrow(a, DTYPE), high, accumulator, PRECISION)
    if DTYPE != tl.float32:
        result = dot(narrow(a, DTYPE), narrow(b - high.to(tl.float32), DTYPE), result, PRECISION)
    return result


@triton.jit
def inverse_norm(x):
    """`1 / |x|` of rows `[m, D]`, fp32; zero for those shorter than 2^-127, NaN where x has one.

    Rows are multiplied by a power of two that puts their largest number in [1, 2): no square under- or overflows.
    """
    exponent = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True) & 0x7F800000
    scale = (0x7F000000 - tl.minimum(exponent, 0x7E800000)).to(tl.float32, bitcast=True)
    x = x * scale[:, None]
    squared = tl.sum(x * x, 1)
    sound = (squared >= 1.0) & (squared < float("inf"))
    inverse = tl.where(sound, scale / tl.sqrt(tl.where(sound, squared, 1.0)), 0.0)
    return tl.where(squared == squared, inverse, squared)


@triton.jit
def normalise(x, inverse):
    """`x * inverse` of rows."""
    return x * inverse[:, None]


@triton.jit
def unsound(x):
    """Which numbers are NaN or infinite."""
    return (x - x) != 0.0


@triton.jit
def in_order(x):
    """An int32 for every fp32 that compares as the numbers do; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
