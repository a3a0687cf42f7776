"""What a query sees, and its logits: slots of the dictionary, and tokens of its own chunk.

Queries come in tiles. A tile belongs to one chunk of one line; where all rows share one dictionary and no chunk
closes (`SHARED`), tiles run over the tokens of all rows, so that short sequences fill them. *Places* number a line's
positions, or, where rows share, row after row those of all. The g query heads of a group are so many queries at one
place.

Logits are in units of log 2, because `exp2` is what hardware has.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import dot_rows, inverse_norm, narrow, normalise
from kernels.triton.tokens import inverse_norms, load_rows, load_tokens, where_tokens

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def places(tile, line, B, G, S, L: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr, BLOCK_M: tl.constexpr):
    """Where the queries of a tile stand.

    Args:
        tile: counted from the first chunk of the call, or over all rows.
        line: of the dictionary; just a head where rows share.
        S: positions of a row.

    Returns:
        Chunk; key/value head; first place that the queries may see, and the one after the last; and of each query
        `[m]`: place, row, position, member of its group, and whether it exists.
    """
    r = tl.arange(0, BLOCK_M)
    if SHARED:
        chunk = 0 * tile
        head = line
        query = tile * BLOCK_M + r
        place = query // GROUP
        begin = tile * BLOCK_M // GROUP // S * S
        end = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1, B * S)
        inside = place < B * S
        row = place // S
        position = place % S
    else:
        TILES: tl.constexpr = (L * GROUP + BLOCK_M - 1) // BLOCK_M
        chunk = tile // TILES
        head = line % G
        query = tile % TILES * BLOCK_M + r
        place = chunk * L + query // GROUP
        begin = chunk * L
        end = chunk * L + tl.minimum((tile % TILES * BLOCK_M + BLOCK_M - 1) // GROUP + 1, L)
        end = tl.minimum(end, S)
        inside = (query < L * GROUP) & (place < S)
        row = line // G + tl.zeros([BLOCK_M], tl.int32)
        position = place
    return chunk, head, begin, end, place, row, position, query % GROUP, inside


@triton.jit
def places_of_tokens(begin, end, line, G, S, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    """Place, row and position of the tokens from place `begin` on, and whether they come before `end`."""
    place = begin + tl.arange(0, BLOCK)
    if SHARED:
        row = place // S
        position = place % S
    else:
        row = line // G + tl.zeros([BLOCK], tl.int32)
        position = place
    return place, row, position, place < end


@triton.jit
def load_queries(
    q, row, time, query_head, asked, q_row, q_token, q_head, QUERY_NORM: tl.constexpr, DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Queries `[m, BLOCK_K]` in fp32, and their inverse norms: one where they are not normalised."""
    d = tl.arange(0, BLOCK_K)[None, :]
    at = row.to(tl.int64) * q_row + time.to(tl.int64) * q_token + query_head.to(tl.int64) * q_head
    held = asked[:, None]
    if DK != BLOCK_K:
        held = held & (d < DK)
    x = tl.load(q + at[:, None] + d, mask=held, other=0.0).to(tl.float32)
    if QUERY_NORM:
        inverse = inverse_norm(x)
        x = normalise(x, inverse)
    else:
        inverse = tl.zeros([x.shape[0]], tl.float32) + 1.0
    return x, inverse


@triton.jit
def own_tokens(
    k,
    mask,
    pending_k,
    pending_mask,
    begin,
    end,
    line,
    head,
    k_row,
    k_token,
    k_head,
    pending_row,
    T,
    P,
    G,
    S,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
    SHARED: tl.constexpr,
    DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Tokens of a chunk: normalised keys `[t, BLOCK_K]` in fp32, inverse norms, validity, place, row, position."""
    place, row, position, inside = places_of_tokens(begin, end, line, G, S, SHARED, BLOCK_T)
    valid = where_tokens(mask, pending_mask, row, position, inside, T, P, pending_row, MASKED, PENDING)
    x = load_tokens(
        k, pending_k, row, head, position, valid, k_row, k_token, k_head, pending_row * G * DK, P, G,
        DK, BLOCK_K, PENDING,
    )  # fmt: skip
    inverse = inverse_norms(x, position, P, PENDING)
    return normalise(x, inverse), inverse, valid, place, row, position


@triton.jit
def token_logits(
    q, keys, beta, place, row, token_place, token_row, valid, READ_OUT: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits `[m, t]` of a chunk's own tokens; minus infinity where a query does not see one.

    A query sees its own place even where that is masked, so that no softmax is empty.
    """
    zero = tl.zeros([q.shape[0], keys.shape[0]], tl.float32)
    logits = dot_rows(q, keys, zero, DTYPE, PRECISION)
    if READ_OUT == "gmr":
        logits -= (tl.sum(keys * keys, 1) / 2)[None, :]
    logits = logits * (beta * LOG2E)[:, None]
    own = place[:, None] == token_place[None, :]
    seen = (token_place[None, :] <= place[:, None]) & (row[:, None] == token_row[None, :]) & valid[None, :]
    return tl.where(seen | own, logits, float("-inf"))


@triton.jit
def slot_rows(first, n, table, counts, TRACED: tl.constexpr, BLOCK_N: tl.constexpr):
    """Slots from `first` on: the row of each in the dictionary, whether it is in use, the logarithm of its count."""
    slot = first + tl.arange(0, BLOCK_N)
    held = slot < n
    if TRACED:
        at = tl.load(table + slot, mask=held, other=-1)
        held = at >= 0
        log_count = tl.load(counts + at, mask=held, other=0.0)
    else:
        at = slot
        log_count = tl.log(tl.load(counts + at, mask=held, other=1).to(tl.float32))
    return at, held, log_count


@triton.jit
def slot_logits(
    q, mu, held, log_count, beta, bias, BIASED: tl.constexpr, READ_OUT: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits `[m, n]` of slots with key means `mu [n, D]`; minus infinity where a slot is empty."""
    zero = tl.zeros([q.shape[0], mu.shape[0]], tl.float32)
    logits = dot_rows(q, mu, zero, DTYPE, PRECISION)
    if READ_OUT == "unit":
        logits = logits * inverse_norm(mu.to(tl.float32))[None, :]
    if READ_OUT == "gmr":
        logits -= half_square(mu)[None, :]
    logits = logits * (beta * LOG2E)[:, None] + (log_count * LOG2E)[None, :]
    if BIASED:
        logits += (bias * LOG2E)[:, None]
    return tl.where(held[None, :], logits, float("-inf"))


@triton.jit
def half_square(mu):
    """`|mu|^2 / 2` of rows."""
    wide = mu.to(tl.float32)
    return tl.sum(wide * wide, 1) / 2


@triton.jit
def load_narrow(base, at, held, stride, DTYPE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of a dictionary as operands of a product: versions are narrow already, a state's means are fp32."""
    x = load_rows(base, at, held, stride, D, BLOCK)
    if base.dtype.element_ty != DTYPE:
        x = narrow(x, DTYPE)
    return x
