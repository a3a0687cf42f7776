"""The way back through the read, as far as it has no order: gradients of queries, and of tokens from their own chunk.

Weights are made again from the logits and the softmax's denominator, which the forward pass kept. They never exceed
one, also where a huge inverse temperature turns a rounding error of a logit into a large number.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import dot, dot_rows, inverse_norm, narrow, normalise
from kernels.triton.sources import (
    half_square,
    load_narrow,
    load_queries,
    own_tokens,
    places,
    slot_logits,
    slot_rows,
    token_logits,
)
from kernels.triton.tokens import columns, load_rows, load_tokens, where_tokens

_VARYING = ("T", "P", "S", "N", "B", "first_tile", "first_chunk", "chunks", "table_of_line", "pending_row")


@triton.jit
def weights_again(logits, lse):
    """Softmax weights `[m, n]` from logits and the logarithm of their denominator, both to base 2."""
    return tl.exp2(tl.minimum(logits - lse[:, None], 0.0))


@triton.jit(do_not_specialize=_VARYING)
def queries_backward(
    d_o,
    o,
    lse,
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
    d_q,
    d_beta,
    d_bias,
    delta,
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
    """Gradients of tiles of queries; arguments as of `read`. Grid: tiles, lines (heads where rows share).

    Args:
        d_o: `[B, T, H, DV]` contiguous; o likewise.
        lse: `[B, T, H]` fp32, from `read`.
        d_q: `[B, T, H, DK]`, written.
        d_beta: `[B, T, H]` fp32, written: what each query adds to its gradient; d_bias likewise.
        delta: `[B, T, H]` fp32, written: the product of output and gradient, for the kernels that follow.
    """
    line = tl.program_id(1)
    tile = tl.program_id(0) + first_tile
    chunk, head, begin, end, place, row, position, member, inside = places(
        tile, line, B, G, S, L, GROUP, SHARED, BLOCK_M
    )
    asked = inside & (position >= P)
    query_head = head * GROUP + member
    answer = where_tokens(mask, pending_mask, row, position, asked, T, P, pending_row, MASKED, False)
    queries, inverse = load_queries(
        q, row, position - P, query_head, answer, q_row, q_token, q_head, QUERY_NORM, DK, BLOCK_K
    )
    scale = tl.load(beta + query_head)
    bias = scale
    if BIASED:
        bias = tl.load(slot_bias + query_head)
    at_query = (row.to(tl.int64) * T + position - P) * (G * GROUP) + query_head
    gradient = load_rows(d_o, at_query, answer, DV, DV, BLOCK_V)
    output = load_rows(o, at_query, answer, DV, DV, BLOCK_V)
    product = tl.sum(gradient.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(delta + at_query, product, mask=asked)
    gradient = narrow(gradient.to(tl.float32), DTYPE)
    denominator = tl.load(lse + at_query, mask=asked, other=0.0)

    d_queries = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    of_beta = tl.zeros([BLOCK_M], tl.float32)
    of_bias = tl.zeros([BLOCK_M], tl.float32)
    zero = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_N):
        own, lengths, valid, token_place, token_row, token = own_tokens(
            k, mask, pending_k, pending_mask, first, end, line, head, k_row, k_token, k_head, pending_row, T, P, G, S,
            MASKED, PENDING, SHARED, DK, BLOCK_K, BLOCK_N,
        )  # fmt: skip
        logits = token_logits(
            queries, own, scale, place, row, token_place, token_row, valid, READ_OUT, DTYPE, PRECISION
        )
        weights = tl.where(answer[:, None], weights_again(logits, denominator), 0.0)
        x = load_tokens(
            v, pending_v, token_row, head, token, valid, v_row, v_token, v_head, pending_row * G * DV, P, G,
            DV, BLOCK_V, PENDING,
        )  # fmt: skip
        d_logits = weights * (dot_rows(gradient, x, zero, DTYPE, PRECISION) - product[:, None])
        d_queries = dot(narrow(d_logits, DTYPE), narrow(own, DTYPE), d_queries, PRECISION)
        if READ_OUT == "gmr":
            of_beta -= tl.sum(d_logits * half_square(own)[None, :], 1)

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
        weights = tl.where(answer[:, None], weights_again(logits, denominator), 0.0)
        nu = load_narrow(values, at, held, value_stride, DTYPE, DV, BLOCK_V)
        d_logits = weights * (dot_rows(gradient, nu, zero, DTYPE, PRECISION) - product[:, None])
        if BIASED:
            of_bias += tl.sum(d_logits, 1)
        if READ_OUT == "gmr":
            of_beta -= tl.sum(d_logits * half_square(mu)[None, :], 1)
        if READ_OUT == "unit":
            d_logits = d_logits * inverse_norm(mu.to(tl.float32))[None, :]
        d_queries = dot(narrow(d_logits, DTYPE), mu, d_queries, PRECISION)

    of_beta += tl.sum(d_queries * queries, 1)
    tl.store(d_beta + at_query, of_beta, mask=asked)
    if BIASED:
        tl.store(d_bias + at_query, of_bias, mask=asked)
    d_queries = d_queries * scale[:, None]
    if QUERY_NORM:
        d_queries -= queries * tl.sum(d_queries * queries, 1)[:, None]
        d_queries = normalise(d_queries, inverse)
    at = at_query[:, None] * DK + tl.arange(0, BLOCK_K)[None, :]
    tl.store(d_q + at, narrow(d_queries, d_q.dtype.element_ty), mask=columns(asked, DK, BLOCK_K))


@triton.jit(do_not_specialize=_VARYING)
def tokens_backward(
    d_o,
    lse,
    delta,
    q,
    k,
    v,
    mask,
    pending_k,
    pending_v,
    pending_mask,
    beta,
    d_tokens,
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
    T,
    P,
    S,
    B,
    G,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
    SHARED: tl.constexpr,
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
    """Gradients of tiles of BLOCK_N tokens from the queries of their chunk.

    Grid: tiles, lines (heads where rows share).

    Args:
        d_tokens: `[B, G, S, DK + DV]` fp32, written: of normalised keys and of values.
        Others: see `queries_backward`.
    """
    line = tl.program_id(1)
    if SHARED:
        head = line
        begin = tl.program_id(0) * BLOCK_N
        end = B * S
        # No query of a later row sees these tokens.
        stop = tl.minimum(((tl.minimum(begin + BLOCK_N, end) - 1) // S + 1) * S, end)
    else:
        TILES: tl.constexpr = (L + BLOCK_N - 1) // BLOCK_N
        chunk = tl.program_id(0) // TILES
        head = line % G
        begin = chunk * L + tl.program_id(0) % TILES * BLOCK_N
        end = tl.minimum(chunk * L + L, S)
        stop = end
    own, lengths, valid, token_place, token_row, token = own_tokens(
        k, mask, pending_k, pending_mask, begin, end, line, head, k_row, k_token, k_head, pending_row, T, P, G, S,
        MASKED, PENDING, SHARED, DK, BLOCK_K, BLOCK_N,
    )  # fmt: skip
    x = load_tokens(
        v, pending_v, token_row, head, token, valid, v_row, v_token, v_head, pending_row * G * DV, P, G,
        DV, BLOCK_V, PENDING,
    )  # fmt: skip
    x = narrow(x, DTYPE)
    d_keys = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    d_values = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    of_squares = tl.zeros([BLOCK_N], tl.float32)
    zero = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(begin * GROUP, stop * GROUP, BLOCK_M):
        query = first + tl.arange(0, BLOCK_M)
        place = query // GROUP
        query_head = head * GROUP + query % GROUP
        if SHARED:
            row = place // S
            position = place % S
        else:
            row = line // G + tl.zeros([BLOCK_M], tl.int32)
            position = place
        asked = (place < stop) & (position >= P)
        answer = where_tokens(mask, pending_mask, row, position, asked, T, P, pending_row, MASKED, False)
        queries, inverse = load_queries(
            q, row, position - P, query_head, answer, q_row, q_token, q_head, QUERY_NORM, DK, BLOCK_K
        )
        scale = tl.load(beta + query_head)
        at_query = (row.to(tl.int64) * T + position - P) * (G * GROUP) + query_head
        gradient = narrow(load_rows(d_o, at_query, answer, DV, DV, BLOCK_V).to(tl.float32), DTYPE)
        denominator = tl.load(lse + at_query, mask=answer, other=0.0)
        product = tl.load(delta + at_query, mask=answer, other=0.0)
        logits = token_logits(
            queries, own, scale, place, row, token_place, token_row, valid, READ_OUT, DTYPE, PRECISION
        )
        weights = tl.where(answer[:, None], weights_again(logits, denominator), 0.0)
        d_values = dot(narrow(tl.trans(weights), DTYPE), gradient, d_values, PRECISION)
        d_logits = weights * (dot_rows(gradient, x, zero, DTYPE, PRECISION) - product[:, None]) * scale[:, None]
        d_keys = dot(narrow(tl.trans(d_logits), DTYPE), narrow(queries, DTYPE), d_keys, PRECISION)
        if READ_OUT == "gmr":
            of_squares += tl.sum(d_logits, 0)
    if READ_OUT == "gmr":
        d_keys -= of_squares[:, None] * own
    inside = token_place < end
    at = (token_row * G + head).to(tl.int64) * S + token
    held_k = inside[:, None]
    held_v = inside[:, None]
    if DK != BLOCK_K:
        held_k = held_k & (tl.arange(0, BLOCK_K)[None, :] < DK)
    if DV != BLOCK_V:
        held_v = held_v & (tl.arange(0, BLOCK_V)[None, :] < DV)
    base = d_tokens + at[:, None] * (DK + DV)
    d_keys = tl.where(valid[:, None], d_keys, 0.0)
    d_values = tl.where(valid[:, None], d_values, 0.0)
    tl.store(base + tl.arange(0, BLOCK_K)[None, :], d_keys, mask=held_k)
    tl.store(base + DK + tl.arange(0, BLOCK_V)[None, :], d_values, mask=held_v)


@triton.jit(do_not_specialize=("T", "P", "S"))
def finish_tokens(
    d_tokens,
    k,
    mask,
    d_k,
    d_v,
    k_row,
    k_token,
    k_head,
    T,
    P,
    S,
    G,
    MASKED: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Gradients of the call's keys and values from those of normalised keys. Grid: tiles of tokens, lines.

    Args:
        d_tokens: `[B, G, S, DK + DV]` fp32.
        d_k: `[B, T, G, DK]`, written; d_v likewise.
    """
    line = tl.program_id(1)
    row = line // G
    head = line % G
    t = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = t < T
    valid = where_tokens(mask, mask, row, t, inside, T, 0, 0, MASKED, False)
    x = load_tokens(k, k, row, head, t, valid, k_row, k_token, k_head, 0, 0, G, DK, BLOCK_K, False)
    inverse = inverse_norm(x)
    x = normalise(x, inverse)
    base = d_tokens + line.to(tl.int64) * S * (DK + DV)
    gradient = load_rows(base, P + t, inside, DK + DV, DK, BLOCK_K)
    gradient = normalise(gradient - x * tl.sum(x * gradient, 1)[:, None], inverse)
    at = (row.to(tl.int64) * T + t) * G + head
    d = tl.arange(0, BLOCK_K)[None, :]
    tl.store(d_k + at[:, None] * DK + d, narrow(gradient, d_k.dtype.element_ty), mask=columns(inside, DK, BLOCK_K))
    gradient = load_rows(base + DK, P + t, inside, DK + DV, DV, BLOCK_V)
    d = tl.arange(0, BLOCK_V)[None, :]
    tl.store(d_v + at[:, None] * DV + d, narrow(gradient, d_v.dtype.element_ty), mask=columns(inside, DV, BLOCK_V))
