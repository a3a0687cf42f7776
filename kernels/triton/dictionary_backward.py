"""The way back along the chunks, for the dictionary: a program per block of slots of a line.

What happens to a slot on the way back concerns that slot alone: the gradient of its mean, which version it has, and how
often it was written. So blocks of slots walk side by side, each with its gradients in registers; every token belongs to
one slot, hence to one block, which alone adds to its gradient. Nothing is added in an order that could change.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import dot, dot_rows, inverse_norm, narrow
from kernels.triton.reading_backward import weights_again
from kernels.triton.sources import load_narrow, load_queries, slot_logits
from kernels.triton.tokens import load_rows, store_rows, where_tokens
from kernels.triton.writing import rates, slots_of

_VARYING = ("T", "P", "S", "N", "B", "closes", "pending_row")


@triton.jit
def spread(
    d_tokens,
    start,
    m,
    codes,
    slot,
    d_means,
    member_share,
    seed_share,
    ADAPTIVE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """Add to the gradient of every token of a chunk its share of that of its slot's mean, `d_means [n, BLOCK]`."""
    for begin in tl.range(0, m, BLOCK_M, disable_licm=True):
        j = begin + tl.arange(0, BLOCK_M)
        code = tl.load(codes + j, mask=j < m, other=-1)
        mine, seed = slots_of(code)
        belongs = (mine[:, None] == slot[None, :]) & (code != -1)[:, None]
        shared = narrow(d_means * member_share[:, None], DTYPE)
        zero = tl.zeros([BLOCK_M, BLOCK], tl.float32)
        if ADAPTIVE:
            x = dot(narrow(belongs.to(tl.float32), DTYPE), shared, zero, PRECISION)
        else:
            joined = (belongs & (seed == 0)[:, None]).to(tl.float32)
            x = dot(narrow(joined, DTYPE), shared, zero, PRECISION)
            seeded = (belongs & seed[:, None]).to(tl.float32)
            x = dot(narrow(seeded, DTYPE), narrow(d_means * seed_share[:, None], DTYPE), x, PRECISION)
        here = tl.sum(belongs.to(tl.int32), 1) > 0
        x += load_rows(d_tokens, start + j, here, STRIDE, D, BLOCK)
        tl.debug_barrier()  # warps may hold the same elements: all must have loaded before one stores
        store_rows(d_tokens, start + j, here, STRIDE, x, D, BLOCK)


@triton.jit(do_not_specialize=_VARYING)
def dictionary_backward(
    d_o,
    lse,
    delta,
    q,
    mask,
    pending_mask,
    beta,
    slot_bias,
    keys,
    values,
    counts,
    log_counts,
    size,
    last,
    previous,
    codes,
    d_final,
    d_initial,
    d_tokens,
    q_row,
    q_token,
    q_head,
    pending_row,
    key_line_row,
    key_line_head,
    key_stride,
    value_line_row,
    value_line_head,
    value_stride,
    log_count_line,
    T,
    P,
    S,
    N,
    B,
    G,
    closes,
    rate,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    TRACED: tl.constexpr,
    SHARED: tl.constexpr,
    FINAL: tl.constexpr,
    INITIAL: tl.constexpr,
    READ_OUT: tl.constexpr,
    QUERY_NORM: tl.constexpr,
    LEARNING_RATE: tl.constexpr,
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
    """Gradients of the initial means, and of tokens through the means of later chunks. Grid: blocks of slots, lines.

    Args:
        d_o: `[B, T, H, DV]` contiguous; lse and delta `[B, T, H]` fp32.
        q: and mask, beta, slot_bias, keys, values: see `read`.
        counts: `[B, G, N]` int64, after the last chunk that closes; of the state where none does.
        log_counts: `[B, G, V]` fp32 of every version; read if TRACED.
        size: `[B, G]` int64 of the state; read unless TRACED.
        last: `[B, G, N]` int32 final versions; read if TRACED.
        previous: `[B, G, closes L]` int32; codes likewise.
        d_final: `[B, G, N, DK + DV]` fp32, gradient of the final means, if FINAL.
        d_initial: likewise of the initial ones, written if INITIAL.
        d_tokens: `[B, G, S, DK + DV]` fp32, added to.
    """
    ADAPTIVE: tl.constexpr = LEARNING_RATE == "adaptive"
    STRIDE: tl.constexpr = DK + DV
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    slot = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = slot < N
    if SHARED:
        head = line
        line_row = 0 * line
        chunks = 1
    else:
        head = line % G
        line_row = line // G
        chunks = (S + L - 1) // L
    keys += line_row.to(tl.int64) * key_line_row + head.to(tl.int64) * key_line_head
    values += line_row.to(tl.int64) * value_line_row + head.to(tl.int64) * value_line_head
    count = tl.load(counts + wide * N + slot, mask=exists, other=0)
    if TRACED:
        codes += wide * closes * L
        previous += wide * closes * L
        log_counts += wide * log_count_line
        d_tokens += wide * S * STRIDE
        version = tl.load(last + wide * N + slot, mask=exists, other=-1)
    else:
        version = tl.where(slot < tl.load(size + line), slot, -1)
    d_mu = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    d_nu = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    if FINAL:
        final = d_final + wide * N * STRIDE
        d_mu += load_rows(final, slot, exists, STRIDE, DK, BLOCK_K)
        d_nu += load_rows(final + DK, slot, exists, STRIDE, DV, BLOCK_V)
    zero = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)

    for step in tl.range(0, chunks, disable_licm=True):
        chunk = chunks - 1 - step
        start = chunk * L
        if TRACED:
            if chunk < closes:
                tokens = tl.zeros([BLOCK_N], tl.int32)
                members = tl.zeros([BLOCK_N], tl.int32)
                before = tl.full([BLOCK_N], -2, tl.int32)
                for begin in tl.range(0, L, BLOCK_M, disable_licm=True):
                    j = begin + tl.arange(0, BLOCK_M)
                    code = tl.load(codes + start + j, mask=j < L, other=-1)
                    mine, seed = slots_of(code)
                    belongs = (mine[:, None] == slot[None, :]) & (code != -1)[:, None]
                    tokens += tl.sum(belongs.to(tl.int32), 0)
                    members += tl.sum((belongs & (code >= 0)[:, None]).to(tl.int32), 0)
                    replaced = tl.load(previous + start + j, mask=j < L, other=-2)
                    before = tl.maximum(before, tl.max(tl.where(belongs, replaced[:, None], -2), 0))
                total = tl.where(count > 0, count, 1)
                member_share, seed_share = rates(tokens, members, total, rate, LEARNING_RATE)
                spread(
                    d_tokens, start, L, codes + start, slot, d_mu, member_share, seed_share,
                    ADAPTIVE, DTYPE, PRECISION, DK, BLOCK_K, BLOCK_M, STRIDE,
                )  # fmt: skip
                spread(
                    d_tokens + DK, start, L, codes + start, slot, d_nu, member_share, seed_share,
                    ADAPTIVE, DTYPE, PRECISION, DV, BLOCK_V, BLOCK_M, STRIDE,
                )  # fmt: skip
                count -= tokens
                if ADAPTIVE:
                    kept = count.to(tl.float32) / total.to(tl.float32)
                else:
                    kept = tl.where(count > 0, 1.0 - members.to(tl.float32) * member_share, 0.0)
                kept = tl.where(tokens > 0, kept, 1.0)
                d_mu = d_mu * kept[:, None]
                d_nu = d_nu * kept[:, None]
                version = tl.where(tokens > 0, before, version)

        held = version >= 0
        if tl.max(version, 0) >= 0:
            at = tl.where(held, version, 0)
            mu = load_narrow(keys, at, held, key_stride, DTYPE, DK, BLOCK_K)
            nu = load_narrow(values, at, held, value_stride, DTYPE, DV, BLOCK_V)
            if TRACED:
                log_count = tl.load(log_counts + at, mask=held, other=0.0)
            else:
                log_count = tl.log(tl.where(count > 0, count, 1).to(tl.float32))
            of_mu = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            of_square = tl.zeros([BLOCK_N], tl.float32)
            if SHARED:
                stop = B * S
                begin = 0 * start
            else:
                stop = tl.minimum(start + L, S)
                begin = tl.maximum(start, P)
            for first in tl.range(begin * GROUP, stop * GROUP, BLOCK_M, disable_licm=True):
                query = first + tl.arange(0, BLOCK_M)
                place = query // GROUP
                query_head = head * GROUP + query % GROUP
                if SHARED:
                    row = place // S
                    position = place % S
                else:
                    row = line_row + tl.zeros([BLOCK_M], tl.int32)
                    position = place
                asked = (place < stop) & (position >= P)
                answer = where_tokens(mask, pending_mask, row, position, asked, T, P, pending_row, MASKED, False)
                queries, lengths = load_queries(
                    q, row, position - P, query_head, answer, q_row, q_token, q_head, QUERY_NORM, DK, BLOCK_K
                )
                scale = tl.load(beta + query_head)
                bias = scale
                if BIASED:
                    bias = tl.load(slot_bias + query_head)
                at_query = (row.to(tl.int64) * T + position - P) * (G * GROUP) + query_head
                gradient = narrow(load_rows(d_o, at_query, answer, DV, DV, BLOCK_V).to(tl.float32), DTYPE)
                denominator = tl.load(lse + at_query, mask=answer, other=0.0)
                product = tl.load(delta + at_query, mask=answer, other=0.0)
                logits = slot_logits(queries, mu, held, log_count, scale, bias, BIASED, READ_OUT, DTYPE, PRECISION)
                weights = tl.where(answer[:, None], weights_again(logits, denominator), 0.0)
                d_nu = dot(narrow(tl.trans(weights), DTYPE), gradient, d_nu, PRECISION)
                d_logits = (
                    weights * (dot_rows(gradient, nu, zero, DTYPE, PRECISION) - product[:, None]) * scale[:, None]
                )
                of_mu = dot(narrow(tl.trans(d_logits), DTYPE), narrow(queries, DTYPE), of_mu, PRECISION)
                if READ_OUT == "gmr":
                    of_square += tl.sum(d_logits, 0)
            if READ_OUT == "gmr":
                of_mu -= of_square[:, None] * mu.to(tl.float32)
            if READ_OUT == "unit":
                inverse = inverse_norm(mu.to(tl.float32))
                unit = mu.to(tl.float32) * inverse[:, None]
                of_mu = inverse[:, None] * (of_mu - unit * tl.sum(unit * of_mu, 1)[:, None])
            d_mu += of_mu

    if INITIAL:
        initial = d_initial + wide * N * STRIDE
        store_rows(initial, slot, exists, STRIDE, d_mu, DK, BLOCK_K)
        store_rows(initial + DK, slot, exists, STRIDE, d_nu, DV, BLOCK_V)
