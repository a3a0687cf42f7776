"""The update of the touched slots, by tiles of tokens: the statistics half of a chunk's end.

The first token of every slot that the chunk touches leads: it alone reads the slot's old mean, adds the chunk's
tokens to it, and writes it, so nothing is added by two programs and no order changes a sum. Who belongs together is a
matrix of zeros and ones, and its product with the tokens their sum.
"""

import triton
import triton.language as tl

from kernels.triton.arithmetic import dot, dot_wide, narrow, normalise, unsound
from kernels.triton.tokens import columns, inverse_norms, load_rows, load_tokens, store_rows


@triton.jit
def slots_of(codes):
    """Slot and seed flag of codes; the slot of a masked token is -1."""
    return tl.where(codes <= -2, -2 - codes, codes), codes <= -2


@triton.jit
def rates(tokens, members, total, rate, LEARNING_RATE: tl.constexpr):
    """Weight in a slot's new mean of each member that joins it, and of the token that seeds it.

    Args:
        tokens: that the chunk brings to the slot.
        members: of them, those that do not seed it.
        total: its count afterwards.
        rate: rho, see `DictionaryOptions`.
        LEARNING_RATE: likewise.
    """
    count = total.to(tl.float32)
    arrived = members.to(tl.float32)
    step = arrived / count
    if LEARNING_RATE == "adaptive":
        member = 1.0 / count
        seed = member
    else:
        constant = 1.0 - tl.exp2(arrived * tl.log2(1.0 - rate))
        # 0 * log 0 has no value: where nobody joins the step is zero, and a rate of one leaves nothing of the old.
        constant = tl.where(members > 0, tl.where(rate < 1.0, constant, 1.0), 0.0)
        if LEARNING_RATE == "floored":
            constant = tl.maximum(step, constant)
        member = constant / tl.maximum(arrived, 1.0)
        seed = 1.0 - constant
    return member, seed


@triton.jit
def sums(
    x,
    together,
    seeds,
    of_all,
    of_seeds,
    EXACT: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to each row the rows of `x [m, D]` that are together with it, and those among them that seed."""
    x = tl.where(unsound(x), 0.0, x)  # which zero weights would spread over all rows; `spoil` sees to it
    if EXACT:  # x came in 16 bits
        of_all = dot(narrow(together.to(tl.float32), DTYPE), narrow(x, DTYPE), of_all, PRECISION)
    else:
        of_all = dot_wide(together.to(tl.float32), x, of_all, DTYPE, PRECISION)
    if not ADAPTIVE:
        of_seeds = dot_wide((together & seeds[None, :]).to(tl.float32), x, of_seeds, DTYPE, PRECISION)
    return of_all, of_seeds


@triton.jit
def moved(old, of_all, of_seeds, tokens, members, member, seed, ADAPTIVE: tl.constexpr):
    """New means `[m, D]`: the old ones plus the sum of `share * (token - old)`; a new slot's old mean is zero."""
    if ADAPTIVE:
        new = old + member[:, None] * (of_all - tokens.to(tl.float32)[:, None] * old)
    else:
        new = old + member[:, None] * (of_all - of_seeds - members.to(tl.float32)[:, None] * old)
        new += seed[:, None] * of_seeds
    return new


@triton.jit
def write(
    k,
    v,
    pending_k,
    pending_v,
    row,
    head,
    start,
    m,
    tile,
    codes,
    means,
    counts,
    last,
    previous,
    versions,
    log_counts,
    first_version,
    row_stride,
    token_stride,
    head_stride,
    v_row_stride,
    v_token_stride,
    v_head_stride,
    pending_row,
    P,
    G,
    rate,
    VERSIONS: tl.constexpr,
    LEARNING_RATE: tl.constexpr,
    PENDING: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Write the slots that tokens of a tile lead.

    Args:
        k: and further inputs, see `tokens`.
        start: position of the chunk.
        m: its positions.
        tile: of its tokens.
        codes: `[m]` int32, final.
        means: `[N, DK + DV]` fp32 of this line, changed.
        counts: `[N]` int64, changed.
        last: `[N]` int32, the version of each slot, changed; see `scan`.
        previous: `[m]` int32, written: the version that a leader's replaces, -2 where a token leads none.
        versions: `[V, DK + DV]`, row `first_version + j` written for leaders.
        log_counts: `[V]` fp32, likewise.
        VERSIONS: whether the last four are wanted.
    """
    ADAPTIVE: tl.constexpr = LEARNING_RATE == "adaptive"
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    slot, _ = slots_of(tl.load(codes + j, mask=j < m, other=-1))
    tokens = tl.zeros([BLOCK_M], tl.int32)
    members = tl.zeros([BLOCK_M], tl.int32)
    earlier = tl.zeros([BLOCK_M], tl.int32)
    of_all = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    of_seeds = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for begin in tl.range(0, m, BLOCK_I, disable_licm=True):
        i = begin + tl.arange(0, BLOCK_I)
        code = tl.load(codes + i, mask=i < m, other=-1)
        other, seed = slots_of(code)
        together = (slot[:, None] == other[None, :]) & (other >= 0)[None, :]
        tokens += tl.sum(together.to(tl.int32), 1)
        members += tl.sum((together & (code >= 0)[None, :]).to(tl.int32), 1)
        earlier += tl.sum((together & (i[None, :] < j[:, None])).to(tl.int32), 1)
        x = load_tokens(
            k, pending_k, row, head, start + i, code != -1, row_stride, token_stride, head_stride,
            pending_row * G * DK, P, G, DK, BLOCK_K, PENDING,
        )  # fmt: skip
        x = normalise(x, inverse_norms(x, start + i, P, PENDING))
        of_all, of_seeds = sums(x, together, seed, of_all, of_seeds, False, ADAPTIVE, DTYPE, PRECISION)

    leads = (slot >= 0) & (earlier == 0)
    at = tl.where(leads, slot, 0)
    total = tl.load(counts + at, mask=leads, other=0) + tokens
    total = tl.where(leads, total, 1)
    member_share, seed_share = rates(tokens, members, total, rate, LEARNING_RATE)
    stride: tl.constexpr = DK + DV
    old = load_rows(means, at, leads, stride, DK, BLOCK_K)
    new = moved(old, of_all, of_seeds, tokens, members, member_share, seed_share, ADAPTIVE)
    if VERSIONS:
        replaced = tl.load(last + at, mask=leads, other=-2)
    # Several warps may hold the same elements of a tile: all must have loaded before one of them stores.
    tl.debug_barrier()
    store_rows(means, at, leads, stride, new, DK, BLOCK_K)
    tl.store(counts + at, total, mask=leads)
    if VERSIONS:
        tl.store(previous + j, replaced, mask=j < m)
        tl.store(last + at, first_version + j, mask=leads)
        tl.store(log_counts + first_version + j, tl.log(total.to(tl.float32)), mask=leads)
        store_rows(versions, first_version + j, leads, stride, narrow(new, DTYPE), DK, BLOCK_K)

    of_all = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    of_seeds = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for begin in tl.range(0, m, BLOCK_I, disable_licm=True):
        i = begin + tl.arange(0, BLOCK_I)
        code = tl.load(codes + i, mask=i < m, other=-1)
        other, seed = slots_of(code)
        together = (slot[:, None] == other[None, :]) & (other >= 0)[None, :]
        x = load_tokens(
            v, pending_v, row, head, start + i, code != -1, v_row_stride, v_token_stride, v_head_stride,
            pending_row * G * DV, P, G, DV, BLOCK_V, PENDING,
        )  # fmt: skip
        of_all, of_seeds = sums(x, together, seed, of_all, of_seeds, not PENDING, ADAPTIVE, DTYPE, PRECISION)
    old = load_rows(means + DK, at, leads, stride, DV, BLOCK_V)
    new = moved(old, of_all, of_seeds, tokens, members, member_share, seed_share, ADAPTIVE)
    tl.debug_barrier()
    store_rows(means + DK, at, leads, stride, new, DV, BLOCK_V)
    if VERSIONS:
        store_rows(versions + DK, first_version + j, leads, stride, narrow(new, DTYPE), DV, BLOCK_V)


@triton.jit
def spoil(
    k,
    v,
    pending_k,
    pending_v,
    row,
    head,
    start,
    m,
    tile,
    codes,
    means,
    last,
    versions,
    row_stride,
    token_stride,
    head_stride,
    v_row_stride,
    v_token_stride,
    v_head_stride,
    pending_row,
    P,
    G,
    VERSIONS: tl.constexpr,
    PENDING: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Make NaN what tokens of a tile that are not finite were written to: their slots' means, in those features.

    Arguments as of `write`, all of whose tiles must be done. Programs that meet here store the same.
    """
    j = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    code = tl.load(codes + j, mask=j < m, other=-1)
    slot, _ = slots_of(code)
    held = slot >= 0
    at = tl.where(held, slot, 0).to(tl.int64)[:, None] * (DK + DV)
    version = at
    if VERSIONS:
        version = tl.load(last + tl.where(held, slot, 0), mask=held, other=0).to(tl.int64)[:, None] * (DK + DV)
    x = load_tokens(
        k, pending_k, row, head, start + j, held, row_stride, token_stride, head_stride, pending_row * G * DK, P, G,
        DK, BLOCK_K, PENDING,
    )  # fmt: skip
    x = normalise(x, inverse_norms(x, start + j, P, PENDING))
    d = tl.arange(0, BLOCK_K)[None, :]
    bad = columns(held, DK, BLOCK_K) & unsound(x)
    tl.store(means + at + d, float("nan"), mask=bad)
    if VERSIONS:
        tl.store(versions + version + d, float("nan"), mask=bad)
    x = load_tokens(
        v, pending_v, row, head, start + j, held, v_row_stride, v_token_stride, v_head_stride, pending_row * G * DV,
        P, G, DV, BLOCK_V, PENDING,
    )  # fmt: skip
    d = DK + tl.arange(0, BLOCK_V)[None, :]
    bad = columns(held, DV, BLOCK_V) & unsound(x)
    tl.store(means + at + d, float("nan"), mask=bad)
    if VERSIONS:
        tl.store(versions + version + d, float("nan"), mask=bad)
