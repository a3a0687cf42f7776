"""How kernels read tokens: from the call's inputs, or from the pending ones of an open chunk before them.

Positions count the pending tokens first: token t of the call stands at position P + t, and chunk c holds positions
c L to (c + 1) L - 1. All rows are read as fp32, zero where there is no token, whatever memory holds there.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import inverse_norm


@triton.jit
def where_tokens(
    mask,
    pending_mask,
    row,
    position,
    inside,
    T,
    P,
    pending_row,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
):
    """Which positions hold a valid token.

    Args:
        mask: `[B, T]` bytes; not read unless MASKED.
        pending_mask: `[B or 1, P]` bytes, rows `pending_row` apart; not read unless PENDING.
        row: a scalar or one per position.
        position: of any shape.
        inside: which positions there are at all.
    """
    seen = inside
    if PENDING:
        seen = inside & (position >= P)
    if MASKED:
        seen = tl.load(mask + row.to(tl.int64) * T + position - P, mask=seen, other=0) != 0
    if PENDING:
        before = inside & (position < P)
        seen = seen | (tl.load(pending_mask + row * pending_row + position, mask=before, other=0) != 0)
    return seen


@triton.jit
def columns(seen, D: tl.constexpr, BLOCK: tl.constexpr):
    """Mask `[m, BLOCK]` of the rows that are seen and the D columns that are there."""
    if D == BLOCK:
        held = tl.broadcast_to(seen[:, None], (seen.shape[0], BLOCK))
    else:
        held = seen[:, None] & (tl.arange(0, BLOCK) < D)[None, :]
    return held


@triton.jit
def load_rows(base, row, seen, stride, D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `[m, BLOCK]` of a matrix whose rows are `stride` apart, in its own dtype; zero where not seen."""
    at = row.to(tl.int64)[:, None] * stride + tl.arange(0, BLOCK)[None, :]
    return tl.load(base + at, mask=columns(seen, D, BLOCK), other=0.0)


@triton.jit
def store_rows(base, row, seen, stride, x, D: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of `load_rows`."""
    at = row.to(tl.int64)[:, None] * stride + tl.arange(0, BLOCK)[None, :]
    tl.store(base + at, x, mask=columns(seen, D, BLOCK))


@triton.jit
def load_tokens(
    new,
    pending,
    row,
    head,
    position,
    seen,
    row_stride,
    token_stride,
    head_stride,
    pending_row,
    P,
    G,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PENDING: tl.constexpr,
):
    """Keys or values `[m, BLOCK]` of one head, fp32.

    Args:
        new: `[B, T, G, D]`, of any strides but the last.
        pending: `[B or 1, P, G, D]`, rows `pending_row` apart; keys in it are normalised already.
        row: a scalar or one per position.
        head: a scalar.
        position: `[m]`.
        seen: `[m]`, from `where_tokens`.
    """
    d = tl.arange(0, BLOCK)[None, :]
    held = columns(seen, D, BLOCK)
    at = row.to(tl.int64) * row_stride + (position - P).to(tl.int64) * token_stride + head.to(tl.int64) * head_stride
    if PENDING:
        recent = (position >= P)[:, None]
        before = row.to(tl.int64) * pending_row + (position * G + head) * D
        x = tl.load(new + at[:, None] + d, mask=held & recent, other=0.0).to(tl.float32)
        x = tl.where(recent, x, tl.load(pending + before[:, None] + d, mask=held & (position < P)[:, None], other=0.0))
    else:
        x = tl.load(new + at[:, None] + d, mask=held, other=0.0).to(tl.float32)
    return x


@triton.jit
def inverse_norms(x, position, P, PENDING: tl.constexpr):
    """Inverse norms of keys that `load_tokens` gave; pending ones are normalised already."""
    inverse = inverse_norm(x)
    if PENDING:
        inverse = tl.where(position < P, 1.0, inverse)
    return inverse
