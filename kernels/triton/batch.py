"""The kernels of a batch write: the steps of a chunk's end, for tiles of any number of tokens side by side.

Between two steps all tiles must be done, so each step is a launch.
"""

import triton
import triton.language as tl

from kernels.triton.selection import assign, choose, settle
from kernels.triton.writing import spoil, write


@triton.jit(do_not_specialize=("T", "N"))
def assign_batch(
    k, mask, size, leaders, means, similarity, order, codes, ranks, k_row, k_token, k_head, T, N, G, threshold,
    MASKED: tl.constexpr,
    NOVELTY: tl.constexpr,
    RANKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`selection.assign` for every tile of the T tokens. Grid: tiles, lines."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    if RANKED:
        ranks += wide * T
    n = tl.load(size + line).to(tl.int32)
    leader = tl.load(leaders + line)
    assign(
        k, mask, k, mask, line // G, line % G, 0, T, tl.program_id(0), n, leader, means + wide * N * (DK + DV),
        similarity + wide * T, order + wide * T, codes + wide * T, ranks, k_row, k_token, k_head, 0, DK + DV, T, 0, G,
        threshold, MASKED, False, NOVELTY, RANKED, DTYPE, PRECISION, DK, BLOCK_K, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit(do_not_specialize=("T",))
def choose_batch(order, codes, news, leaders, T, BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr):
    """`selection.choose`, likewise."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    choose(
        order + wide * T,
        codes + wide * T,
        T,
        tl.program_id(0),
        tl.load(news + line),
        tl.load(leaders + line),
        BLOCK_M,
        BLOCK_I,
    )


@triton.jit(do_not_specialize=("T",))
def settle_batch(
    k, size, new_size, similarity, codes, k_row, k_token, k_head, T, G,
    JOIN_SEEDS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """`selection.settle`, likewise; `new_size [B, G]` is written."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    n = tl.load(size + line).to(tl.int32)
    total = settle(
        k, k, line // G, line % G, 0, T, tl.program_id(0), n, similarity + wide * T, codes + wide * T, k_row, k_token,
        k_head, 0, 0, G, JOIN_SEEDS, False, DTYPE, PRECISION, DK, BLOCK_K, BLOCK_M, BLOCK_I,
    )  # fmt: skip
    tl.store(new_size + line, total.to(tl.int64), mask=tl.program_id(0) == 0)


@triton.jit(do_not_specialize=("T", "N"))
def write_batch(
    k, v, codes, means, counts, k_row, k_token, k_head, v_row, v_token, v_head, T, N, G, rate,
    LEARNING_RATE: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """`writing.write`, likewise."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    write(
        k, v, k, v, line // G, line % G, 0, T, tl.program_id(0), codes + wide * T, means + wide * N * (DK + DV),
        counts + wide * N, codes, codes, means, means, 0, k_row, k_token, k_head, v_row, v_token, v_head, 0, 0, G,
        rate, False, LEARNING_RATE, False, DTYPE, PRECISION, DK, DV, BLOCK_K, BLOCK_V, BLOCK_M, BLOCK_I,
    )  # fmt: skip


@triton.jit(do_not_specialize=("T", "N"))
def spoil_batch(
    k, v, codes, means, k_row, k_token, k_head, v_row, v_token, v_head, T, N, G,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """`writing.spoil`, likewise."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    means += wide * N * (DK + DV)
    spoil(
        k, v, k, v, line // G, line % G, 0, T, tl.program_id(0), codes + wide * T, means, codes, means, k_row, k_token,
        k_head, v_row, v_token, v_head, 0, 0, G, False, False, DK, DV, BLOCK_K, BLOCK_V, BLOCK_M,
    )  # fmt: skip
