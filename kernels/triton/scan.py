"""The one part of a call that is sequential: a program per line walks its chunks and writes the dictionary.

It reads no query. What it leaves lets every other kernel see the dictionary as it stood before any chunk, without a
copy of it per chunk: each slot that a chunk touches gets a new *version*, a row of its own (so there are never more
of them than tokens), and which version a slot has when is written in the tokens' codes. Versions 0 to N - 1 are the
initial dictionary, version N + s is that of the slot which the token at position s leads.
"""

import triton
import triton.language as tl

from kernels.triton.selection import assign, choose, first_token, settle
from kernels.triton.writing import spoil, write

_VARYING = ("T", "P", "N", "closes", "versions_of_line", "pending_row")


@triton.jit(do_not_specialize=_VARYING)
def scan(
    k,
    v,
    mask,
    pending_k,
    pending_v,
    pending_mask,
    targets,
    arrivals,
    ranks,
    means,
    counts,
    size,
    sizes,
    last,
    previous,
    codes,
    versions,
    log_counts,
    similarity,
    order,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    pending_row,
    T,
    P,
    G,
    N,
    closes,
    versions_of_line,
    threshold,
    rate,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
    NOVELTY: tl.constexpr,
    RANKED: tl.constexpr,
    JOIN_SEEDS: tl.constexpr,
    LEARNING_RATE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    L: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Walk the chunks that close. Grid: lines.

    Args:
        k: `[B, T, G, DK]`; v likewise; mask `[B, T]` bytes; pending ones `[B or 1, P, ...]`.
        targets: `[B, closes]` int32, slots that should be in use after each chunk.
        arrivals: `[B, closes]` int32, its valid tokens.
        ranks: `[B, G, closes L]` int32 if RANKED.
        means: `[B, G, N, DK + DV]` fp32, the initial dictionary, left as the final one.
        counts: `[B, G, N]` int64, likewise.
        size: `[B, G]` int64, likewise.
        sizes: `[B, G, closes + 1]` int32, written: slots in use before each chunk.
        last: `[B, G, N]` int32: the version of each slot, -1 where it is empty; left as the final one.
        previous: `[B, G, closes L]` int32, written: the version that a leader's replaces, -2 where a token leads none.
        codes: `[B, G, closes L]` int32, written.
        versions: `[B, G, N + closes L, DK + DV]`, the first N given.
        log_counts: `[B, G, N + closes L]` fp32, likewise.
        similarity: `[B, G, L]` fp32 scratch; order `[B, G, L]` int32.
    """
    line = tl.program_id(0)
    row = line // G
    head = line % G
    wide = line.to(tl.int64)
    stride: tl.constexpr = DK + DV
    means += wide * N * stride
    counts += wide * N
    last += wide * N
    sizes += wide * (closes + 1)
    codes += wide * closes * L
    previous += wide * closes * L
    versions += wide * versions_of_line * stride
    log_counts += wide * versions_of_line
    similarity += wide * L
    order += wide * L
    if RANKED:
        ranks += wide * closes * L
    n = tl.load(size + line).to(tl.int32)
    for chunk in tl.range(0, closes, disable_licm=True):
        start = chunk * L
        tl.store(sizes + chunk, n)
        arrived = tl.load(arrivals + row * closes + chunk)
        new = tl.minimum(tl.maximum(tl.load(targets + row * closes + chunk) - n, 0), arrived)
        leader = -1
        if n == 0:
            if arrived > 0:
                leader = first_token(mask, pending_mask, row, start, L, T, P, pending_row, MASKED, PENDING, BLOCK_M)
                new -= 1
        chunk_ranks = ranks
        if RANKED:
            chunk_ranks = ranks + start
        for tile in tl.range(0, (L + BLOCK_M - 1) // BLOCK_M, disable_licm=True):
            assign(
                k, mask, pending_k, pending_mask, row, head, start, L, tile, n, leader, means, similarity, order,
                codes + start, chunk_ranks, k_row, k_token, k_head, pending_row, stride, T, P, G, threshold,
                MASKED, PENDING, NOVELTY, RANKED, DTYPE, PRECISION, DK, BLOCK_K, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        tl.debug_barrier()
        if (new > 0) | (leader >= 0):
            for tile in tl.range(0, (L + BLOCK_M - 1) // BLOCK_M, disable_licm=True):
                choose(order, codes + start, L, tile, new, leader, BLOCK_M, BLOCK_I)
            tl.debug_barrier()
            total = n
            for tile in tl.range(0, (L + BLOCK_M - 1) // BLOCK_M, disable_licm=True):
                total = settle(
                    k, pending_k, row, head, start, L, tile, n, similarity, codes + start, k_row, k_token, k_head,
                    pending_row, P, G, JOIN_SEEDS, PENDING, DTYPE, PRECISION, DK, BLOCK_K, BLOCK_M, BLOCK_I,
                )  # fmt: skip
            n = total
            tl.debug_barrier()
        for tile in tl.range(0, (L + BLOCK_M - 1) // BLOCK_M, disable_licm=True):
            write(
                k, v, pending_k, pending_v, row, head, start, L, tile, codes + start, means, counts, last,
                previous + start, versions, log_counts, N + start, k_row, k_token, k_head, v_row, v_token, v_head,
                pending_row, P, G, rate, True, LEARNING_RATE, PENDING, DTYPE, PRECISION, DK, DV, BLOCK_K, BLOCK_V,
                BLOCK_M, BLOCK_I,
            )  # fmt: skip
        tl.debug_barrier()
        for tile in tl.range(0, (L + BLOCK_M - 1) // BLOCK_M, disable_licm=True):
            spoil(
                k, v, pending_k, pending_v, row, head, start, L, tile, codes + start, means, last, versions, k_row,
                k_token, k_head, v_row, v_token, v_head, pending_row, P, G, True, PENDING, DK, DV, BLOCK_K, BLOCK_V,
                BLOCK_M,
            )  # fmt: skip
        tl.debug_barrier()
    tl.store(sizes + closes, n)
    tl.store(size + line, n.to(tl.int64))


@triton.jit(do_not_specialize=("N", "first_chunk", "chunks", "codes_of_line", "table_of_line"))
def trace(
    codes,
    versions_now,
    table,
    N,
    first_chunk,
    chunks,
    codes_of_line,
    table_of_line,
    L: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Which version every slot has before each chunk, from the codes. Grid: lines, blocks of slots.

    Args:
        codes: `[B, G, codes_of_line]` int32.
        versions_now: `[B, G, N]` int32, before chunk `first_chunk`; left as before the chunk after the last.
        table: `[B, G, table_of_line, N]` int32, its first `chunks` written.
    """
    line = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    held = slot < N
    codes += line * codes_of_line
    version = tl.load(versions_now + line * N + slot, mask=held, other=-1)
    for chunk in range(0, chunks):
        tl.store(table + (line * table_of_line + chunk) * N + slot, version, mask=held)
        start = (first_chunk + chunk) * L
        for begin in range(0, L, BLOCK_M):
            j = begin + tl.arange(0, BLOCK_M)
            code = tl.load(codes + start + j, mask=(j < L) & (start + j < codes_of_line), other=-1)
            code = tl.where(code <= -2, -2 - code, code)
            first = tl.min(tl.where(code[:, None] == slot[None, :], j[:, None], 0x7FFFFFFF), 0)
            # A later tile's token leads only a slot that no earlier tile of the chunk touched.
            version = tl.where((first < 0x7FFFFFFF) & (version < N + start), N + start + first, version)
    tl.debug_barrier()  # warps may hold the same slots: all must have loaded `versions_now` before one stores it
    tl.store(versions_now + line * N + slot, version, mask=held)
