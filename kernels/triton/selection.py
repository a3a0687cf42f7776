"""Which tokens of a chunk become slots, and which slot every other token goes to, by tiles of tokens.

Three steps, each of which needs the one before it for all tiles of the chunk: `assign` finds the most similar old slot,
`choose` the seeds, `settle` numbers them and lets the other tokens join them. What passes between them lies in scratch
memory, one number per token of the chunk: `similarity`, `order` and `codes`.

A code is the slot that a token joins, -2 - slot for the slot that it seeds, -1 for a token that is masked.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import dot, dot_rows, dot_wide, in_order, narrow, normalise
from kernels.triton.tokens import columns, inverse_norms, load_tokens, where_tokens

NOBODY = tl.constexpr(0x7FFFFFFF)  # the order of a token that may not seed; larger than every index


@triton.jit
def key_operand(x, inverse, DTYPE: tl.constexpr):
    """Keys as similarity sees them, and by what its products are to be scaled.

    Which slot is most similar does not depend on a key's length, so 16-bit keys enter as they are, without rounding.
    """
    if DTYPE == tl.float32:
        x = normalise(x, inverse)
        inverse = tl.full(inverse.shape, 1.0, tl.float32)
    else:
        x = tl.where((inverse == 0)[:, None], x * 0.0, x)  # not zero where x is infinite: that matches nothing
    return x, inverse


@triton.jit
def similarity_to_rows(x, rows, zero, DTYPE: tl.constexpr, PENDING: tl.constexpr, PRECISION: tl.constexpr):
    """Products `[m, n]` of keys `x [m, D]` with fp32 rows `[n, D]`, more exact than 16 bits."""
    if DTYPE == tl.float32:
        product = dot_rows(x, rows, zero, DTYPE, PRECISION)
    else:
        product = dot_wide(x, tl.trans(rows), zero, DTYPE, PRECISION)
    if PENDING and DTYPE != tl.float32:  # pending keys are fp32: their low part counts too
        low = narrow(x - narrow(x, DTYPE).to(tl.float32), DTYPE)
        product = dot(low, narrow(tl.trans(rows), DTYPE), product, PRECISION)
    return product


@triton.jit
def nearest_slots(
    x,
    scale,
    means,
    n,
    stride,
    DTYPE: tl.constexpr,
    PENDING: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Largest similarity `[m]` of keys with the first n slots, and the lowest slot that has it.

    `tl.max` passes over NaN, and nothing is equal to or more than it: a key of NaN finds slot 0, a slot of NaN is not
    found.
    """
    column = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_K)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    nearest = tl.zeros([BLOCK_M], tl.int32)
    for first in range(0, n, BLOCK_N):
        slot = first + column
        held = columns(slot < n, DK, BLOCK_K)
        rows = tl.load(means + slot[:, None] * stride + d[None, :], mask=held, other=0.0)
        zero = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        score = similarity_to_rows(x, rows, zero, DTYPE, PENDING, PRECISION)
        score = tl.where((slot < n)[None, :], score, float("-inf"))
        most = tl.max(score, 1)
        which = tl.min(tl.where(score == most[:, None], slot[None, :], NOBODY), 1)
        better = most > best
        best = tl.where(better, most, best)
        nearest = tl.where(better, which, nearest)
    return best * scale, nearest


@triton.jit
def first_token(
    mask,
    pending_mask,
    row,
    start,
    m,
    T,
    P,
    pending_row,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Index in the chunk of its first valid token; NOBODY if there is none."""
    found = 0x7FFFFFFF
    for begin in range(0, m, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        seen = where_tokens(mask, pending_mask, row, start + j, j < m, T, P, pending_row, MASKED, PENDING)
        found = tl.minimum(found, tl.min(tl.where(seen, j, NOBODY), 0))
    return found


@triton.jit
def assign(
    k,
    mask,
    pending_k,
    pending_mask,
    row,
    head,
    start,
    m,
    tile,
    n,
    leader,
    means,
    similarity,
    order,
    codes,
    ranks,
    row_stride,
    token_stride,
    head_stride,
    pending_row,
    mean_stride,
    T,
    P,
    G,
    threshold,
    MASKED: tl.constexpr,
    PENDING: tl.constexpr,
    NOVELTY: tl.constexpr,
    RANKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The old slot most like each token of a tile, and where it stands in the choice of seeds.

    Args:
        k: and further inputs, see `tokens`.
        start: position of the chunk.
        m: its positions.
        tile: of its tokens.
        n: slots in use.
        leader: index of the token that is slot 0 of an empty dictionary and counts as old; -1 in any other.
        means: `[N, Dk ...]` fp32 of this line, rows `mean_stride` apart.
        similarity: `[m]` fp32, written.
        order: `[m]` int32, written: tokens of lowest order seed first; NOBODY does not.
        codes: `[m]` int32, written.
        ranks: `[m]` int32, the order if RANKED, else that of the similarity.
        threshold: with NOVELTY, similarity from which on a token may not seed.
    """
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    position = start + j
    seen = where_tokens(mask, pending_mask, row, position, j < m, T, P, pending_row, MASKED, PENDING)
    x = load_tokens(
        k, pending_k, row, head, position, seen, row_stride, token_stride, head_stride, pending_row * G * DK, P, G,
        DK, BLOCK_K, PENDING,
    )  # fmt: skip
    inverse = inverse_norms(x, position, P, PENDING)
    operand, scale = key_operand(x, inverse, DTYPE)
    like, slot = nearest_slots(
        operand, scale, means, n, mean_stride, DTYPE, PENDING, PRECISION, DK, BLOCK_K, BLOCK_M, BLOCK_N
    )
    if leader >= 0:
        at = start + leader + tl.zeros([BLOCK_M], tl.int32)
        there = at >= 0
        y = load_tokens(
            k, pending_k, row, head, at, there, row_stride, token_stride, head_stride, pending_row * G * DK, P, G,
            DK, BLOCK_K, PENDING,
        )  # fmt: skip
        y = normalise(y, inverse_norms(y, at, P, PENDING))
        like = tl.sum(normalise(x, inverse) * y, 1)
        slot = tl.zeros([BLOCK_M], tl.int32)
    like = tl.where(like == like, like, float("-inf"))
    may = seen & (j != leader)
    if NOVELTY:
        may = may & (like < threshold)
    if RANKED:
        rank = tl.load(ranks + j, mask=seen, other=0)
    else:
        rank = in_order(like)
    tl.store(similarity + j, like, mask=j < m)
    tl.store(order + j, tl.where(may, tl.minimum(rank, NOBODY - 1), NOBODY), mask=j < m)
    tl.store(codes + j, tl.where(seen, slot, -1), mask=j < m)


@triton.jit
def choose(order, codes, m, tile, new, leader, BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr):
    """Mark the seeds of a tile: the `new` tokens of lowest order, the earlier one on ties, and the leader.

    A token's rank is the number of tokens that come before it, counted; nothing is sorted.
    """
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    mine = tl.load(order + j, mask=j < m, other=NOBODY)
    rank = tl.zeros([BLOCK_M], tl.int32)
    if new > 0:
        for begin in tl.range(0, m, BLOCK_I, disable_licm=True):
            i = begin + tl.arange(0, BLOCK_I)
            other = tl.load(order + i, mask=i < m, other=NOBODY)
            equal = (other[None, :] == mine[:, None]) & (i[None, :] < j[:, None])
            rank += tl.sum(((other[None, :] < mine[:, None]) | equal).to(tl.int32), 1)
    seed = ((mine != NOBODY) & (rank < new)) | (j == leader)
    tl.store(codes + j, -2, mask=(j < m) & seed)


@triton.jit
def settle(
    k,
    pending_k,
    row,
    head,
    start,
    m,
    tile,
    n,
    similarity,
    codes,
    row_stride,
    token_stride,
    head_stride,
    pending_row,
    P,
    G,
    JOIN_SEEDS: tl.constexpr,
    PENDING: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Final codes of a tile: seeds get slots in order of position; the others join a seed that is more like them.

    It overwrites codes that other tiles may read still, but never makes a seed of what is none or the reverse, and
    that is all they read.

    Returns:
        Slots in use after the chunk.
    """
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    code = tl.load(codes + j, mask=j < m, other=-1)
    best = tl.load(similarity + j, mask=j < m, other=0.0)
    slot = code
    own = tl.zeros([BLOCK_M], tl.int32)
    if JOIN_SEEDS:
        x = load_tokens(
            k, pending_k, row, head, start + j, code != -1, row_stride, token_stride, head_stride,
            pending_row * G * DK, P, G, DK, BLOCK_K, PENDING,
        )  # fmt: skip
        x, scale = key_operand(x, inverse_norms(x, start + j, P, PENDING), DTYPE)
    total = n
    for begin in tl.range(0, m, BLOCK_I, disable_licm=True):
        i = begin + tl.arange(0, BLOCK_I)
        seed = tl.load(codes + i, mask=i < m, other=-1) <= -2
        flag = seed.to(tl.int32)
        number = total + tl.cumsum(flag, 0) - flag
        own += tl.sum(tl.where(i[None, :] == j[:, None], number[None, :], 0), 1)
        seeds = tl.sum(flag, 0)
        if JOIN_SEEDS:
            if seeds > 0:
                y = load_tokens(
                    k, pending_k, row, head, start + i, seed, row_stride, token_stride, head_stride,
                    pending_row * G * DK, P, G, DK, BLOCK_K, PENDING,
                )  # fmt: skip
                y, scale_y = key_operand(y, inverse_norms(y, start + i, P, PENDING), DTYPE)
                zero = tl.zeros([BLOCK_M, BLOCK_I], tl.float32)
                if PENDING:
                    score = similarity_to_rows(x, y, zero, DTYPE, PENDING, PRECISION)
                else:  # both are as narrow as they came
                    score = dot_rows(x, y, zero, DTYPE, PRECISION)
                score = score * scale[:, None] * scale_y[None, :]
                score = tl.where(seed[None, :], score, float("-inf"))
                most = tl.max(score, 1)
                which = tl.min(tl.where(score == most[:, None], number[None, :], NOBODY), 1)
                better = most > best
                best = tl.where(better, most, best)
                slot = tl.where(better, which, slot)
        total += seeds
    code = tl.where(code <= -2, -2 - own, tl.where(code == -1, -1, slot))
    tl.store(codes + j, code, mask=j < m)
    return total
