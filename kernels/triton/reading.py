"""The read: one softmax over slots and tokens in the manner of flash attention, a program per tile of queries.

Scores exist for one block of slots or tokens at a time; the softmax is kept as a running maximum, a running sum, and an
output that is rescaled when the maximum grows (Dao et al. 2022, arXiv 2205.14135).
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import dot, narrow, unsound
from kernels.triton.sources import (
    load_narrow,
    load_queries,
    own_tokens,
    places,
    slot_logits,
    slot_rows,
    token_logits,
)
from kernels.triton.tokens import load_tokens, where_tokens

_VARYING = ("T", "P", "S", "N", "B", "first_tile", "first_chunk", "chunks", "table_of_line", "pending_row")


@triton.jit
def absorb(logits, values, most, total, out, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """Take a block of logits `[m, n]` and values `[n, D]` into a running softmax."""
    new = tl.maximum(most, tl.max(logits, 1))
    shift = tl.where(new == float("-inf"), 0.0, new)  # nothing seen so far
    weights = tl.exp2(logits - shift[:, None])
    scale = tl.exp2(most - shift)
    total = total * scale + tl.sum(weights, 1)
    out = dot(narrow(weights, DTYPE), values, out * scale[:, None], PRECISION)
    return new, total, out


@triton.jit
def set_apart(logits, values, out):
    """Put zero for values `[n, D]` that are not finite, and NaN into the outputs that see one.

    A later token's weight is zero, but zero times NaN is not. It is rare, so one token after the other: few registers.
    """
    i = tl.arange(0, values.shape[0])
    for token in tl.range(0, values.shape[0], disable_licm=True):
        sees = tl.max(((i == token)[None, :] & (logits != float("-inf"))).to(tl.int32), 1)
        bad = tl.max(((i == token)[:, None] & unsound(values.to(tl.float32))).to(tl.int32), 0)
        out = tl.where((sees[:, None] & bad[None, :]) > 0, float("nan"), out)
    return tl.where(unsound(values.to(tl.float32)), 0.0, values).to(values.dtype), out


@triton.jit(do_not_specialize=_VARYING)
def read(
    q,
    k,
    v,
    mask,
    pending_k,
    pending_v,
    pending_mask,
    beta,
    slot_bias,
    keys,
    values,
    counts,
    sizes,
    table,
    o,
    lse,
    q_row,
    q_token,
    q_head,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    pending_row,
    key_line_row,
    key_line_head,
    key_stride,
    value_line_row,
    value_line_head,
    value_stride,
    count_line,
    T,
    P,
    S,
    N,
    B,
    G,
    first_tile,
    first_chunk,
    chunks,
    table_of_line,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
    BIASED: tl.constexpr,
    TRACED: tl.constexpr,
    SHARED: tl.constexpr,
    KEEP: tl.constexpr,
    READ_OUT: tl.constexpr,
    QUERY_NORM: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    L: tl.constexpr,
    GROUP: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Outputs of tiles of queries. Grid: tiles, lines (heads where rows share).

    Args:
        q: `[B, T, H, DK]`; k, v, mask and pending ones as in `tokens`.
        beta: `[H]` fp32; slot_bias likewise.
        keys: rows of the dictionary: versions if TRACED, else the state's means; lines `key_line_row` and
            `key_line_head`, rows `key_stride` apart.
        values: likewise.
        counts: `[V]` fp32 logarithms of every version's count if TRACED, else `[N]` int64 counts; lines `count_line`
            apart.
        sizes: `[B, G, chunks]` slots in use before each chunk.
        table: `[B, G, table_of_line, N]` int32 versions before each chunk from `first_chunk` on, if TRACED.
        o: `[B, T, H, DV]`, written.
        lse: `[B, T, H]` fp32, written if KEEP: logarithm, to base 2, of the softmax's denominator.
    """
    line = tl.program_id(1)
    tile = tl.program_id(0) + first_tile
    chunk, head, begin, end, place, row, position, member, inside = places(
        tile, line, B, G, S, L, GROUP, SHARED, BLOCK_M
    )
    asked = inside & (position >= P)
    query_head = head * GROUP + member
    queries, inverse = load_queries(
        q, row, position - P, query_head, asked, q_row, q_token, q_head, QUERY_NORM, DK, BLOCK_K
    )
    scale = tl.load(beta + query_head)
    bias = scale
    if BIASED:
        bias = tl.load(slot_bias + query_head)

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for first in range(begin, end, BLOCK_N):
        own, lengths, valid, token_place, token_row, token = own_tokens(
            k, mask, pending_k, pending_mask, first, end, line, head, k_row, k_token, k_head, pending_row, T, P, G, S,
            MASKED, PENDING, SHARED, DK, BLOCK_K, BLOCK_N,
        )  # fmt: skip
        logits = token_logits(
            queries, own, scale, place, row, token_place, token_row, valid, READ_OUT, DTYPE, PRECISION
        )
        x = load_tokens(
            v, pending_v, token_row, head, token, valid, v_row, v_token, v_head, pending_row * G * DV, P, G,
            DV, BLOCK_V, PENDING,
        )  # fmt: skip
        x = narrow(x, DTYPE)
        if tl.max(tl.max(unsound(x.to(tl.float32)).to(tl.int32), 1), 0) > 0:
            x, out = set_apart(logits, x, out)
        most, total, out = absorb(logits, x, most, total, out, DTYPE, PRECISION)

    if SHARED:
        line_row = 0 * line
    else:
        line_row = line // G
    keys += line_row.to(tl.int64) * key_line_row + head.to(tl.int64) * key_line_head
    values += line_row.to(tl.int64) * value_line_row + head.to(tl.int64) * value_line_head
    counts += line.to(tl.int64) * count_line
    n = tl.load(sizes + line * chunks + chunk).to(tl.int32)
    if TRACED:
        table += (line.to(tl.int64) * table_of_line + chunk - first_chunk) * N
    for first in range(0, n, BLOCK_N):
        at, held, log_count = slot_rows(first, n, table, counts, TRACED, BLOCK_N)
        mu = load_narrow(keys, at, held, key_stride, DTYPE, DK, BLOCK_K)
        logits = slot_logits(queries, mu, held, log_count, scale, bias, BIASED, READ_OUT, DTYPE, PRECISION)
        nu = load_narrow(values, at, held, value_stride, DTYPE, DV, BLOCK_V)
        most, total, out = absorb(logits, nu, most, total, out, DTYPE, PRECISION)

    valid = where_tokens(mask, pending_mask, row, position, asked, T, P, pending_row, MASKED, False)
    out = tl.where(valid[:, None], out / tl.where(total > 0, total, 1.0)[:, None], 0.0)
    at = (row.to(tl.int64) * T + position - P) * (G * GROUP) + query_head
    d = tl.arange(0, BLOCK_V)[None, :]
    held = asked[:, None] & (d < DV)
    tl.store(o + at[:, None] * DV + d, narrow(out, o.dtype.element_ty), mask=held)
    if KEEP:
        tl.store(lse + at, most + tl.log2(total), mask=asked)
