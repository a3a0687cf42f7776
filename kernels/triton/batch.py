"""The write of a batch: one update with any number of tokens, in tiles that work side by side.

The steps of a chunk's end are those of the scan; between two of them all tiles must be done, so each is a launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.growth import target_size
from kernels.options import DictionaryOptions
from kernels.state import DictionaryState
from kernels.triton import tiles
from kernels.triton.calls import random_ranks
from kernels.triton.launch import TYPES, launch, power, precision, widest
from kernels.triton.selection import assign, choose, settle
from kernels.triton.writing import write


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
def choose_batch(order, codes, news, leaders, T, BLOCK_M: tl.constexpr):
    """`selection.choose`, likewise."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    choose(
        order + wide * T, codes + wide * T, T, tl.program_id(0), tl.load(news + line), tl.load(leaders + line), BLOCK_M
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
):  # fmt: skip
    """`selection.settle`, likewise; `new_size [B, G]` is written."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    n = tl.load(size + line).to(tl.int32)
    total = settle(
        k, k, line // G, line % G, 0, T, tl.program_id(0), n, similarity + wide * T, codes + wide * T, k_row, k_token,
        k_head, 0, 0, G, JOIN_SEEDS, False, DTYPE, PRECISION, DK, BLOCK_K, BLOCK_M,
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
):  # fmt: skip
    """`writing.write`, likewise."""
    line = tl.program_id(1)
    wide = line.to(tl.int64)
    write(
        k, v, k, v, line // G, line % G, 0, T, tl.program_id(0), codes + wide * T, means + wide * N * (DK + DV),
        counts + wide * N, codes, codes, means, means, 0, k_row, k_token, k_head, v_row, v_token, v_head, 0, 0, G,
        rate, False, LEARNING_RATE, False, DTYPE, PRECISION, DK, DV, BLOCK_K, BLOCK_V, BLOCK_M,
    )  # fmt: skip


@torch.no_grad()
def update(
    state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor | None
) -> tuple[DictionaryState, Tensor]:
    """See `kernels.update`; arguments are checked and served, and a state of one row gets tokens of one row.

    Returns:
        The new state, and the slots `[B, T, G]` int64.
    """
    (b, t, g, dk), dv, n = k.shape, v.shape[-1], options.capacity
    device = k.device
    if mask is None:
        arrived = torch.full((b,), t, dtype=torch.int64, device=device)
        first = torch.zeros(b, dtype=torch.int64, device=device)
    else:
        arrived, first = mask.sum(-1), mask.byte().argmax(-1)
    tokens = state.tokens + arrived
    new = (target_size(tokens, options)[:, None] - state.size).clamp(min=0).minimum(arrived[:, None])
    empty = (state.size == 0) & (arrived > 0)[:, None]
    leaders = torch.where(empty, first[:, None], -1).int()
    new = (new - empty.long()).int()
    ranks = None
    if options.seeds == "random":
        valid = torch.ones(b, t, dtype=torch.bool, device=device) if mask is None else mask
        ranks = random_ranks(valid, state.tokens, g, options.seed)
    k, v = (x.detach() if x.stride(-1) == 1 else x.detach().contiguous() for x in (k, v))
    means = torch.cat([state.keys, state.values], -1)
    counts = state.counts.clone(memory_format=torch.contiguous_format)
    codes = torch.empty(b, g, t, dtype=torch.int32, device=device)
    size = state.size.contiguous()
    scratch = {"similarity": means.new_empty(b, g, t), "order": torch.empty_like(codes)}
    new_size = size.clone()
    dtype = widest(k, v)
    tile = tiles.scan_tile(dtype, t, max(dk, dv))
    grid = (-(-t // tile.rows), b * g)
    strides = dict(zip(("k_row", "k_token", "k_head"), k.stride(), strict=False))
    v_strides = dict(zip(("v_row", "v_token", "v_head"), v.stride(), strict=False))
    common = {"DTYPE": TYPES[dtype], "PRECISION": precision(device), "DK": dk, "BLOCK_K": power(dk)}
    how = {"warps": tile.warps, "stages": tile.stages, "BLOCK_M": tile.rows}
    launch(
        assign_batch,
        grid,
        k=k,
        mask=None if mask is None else mask.contiguous().view(torch.uint8),
        size=size,
        leaders=leaders,
        means=means,
        codes=codes,
        ranks=ranks,
        **scratch,
        **strides,
        T=t,
        N=n,
        G=g,
        threshold=float(options.novelty_threshold),
        MASKED=mask is not None,
        NOVELTY=options.growth == "novelty",
        RANKED=ranks is not None,
        DV=dv,
        BLOCK_N=tile.columns,
        **common,
        **how,
    )
    launch(choose_batch, grid, order=scratch["order"], codes=codes, news=new, leaders=leaders, T=t, **how)
    launch(
        settle_batch,
        grid,
        k=k,
        size=size,
        new_size=new_size,
        similarity=scratch["similarity"],
        codes=codes,
        **strides,
        T=t,
        G=g,
        JOIN_SEEDS=options.assignment == "all",
        **common,
        **how,
    )
    launch(
        write_batch,
        grid,
        k=k,
        v=v,
        codes=codes,
        means=means,
        counts=counts,
        **strides,
        **v_strides,
        T=t,
        N=n,
        G=g,
        rate=float(options.rate),
        LEARNING_RATE=options.learning_rate,
        DV=dv,
        BLOCK_V=power(dv),
        **common,
        **how,
    )
    slots = torch.where(codes < -1, -2 - codes, codes).long().transpose(1, 2)
    return (
        state.replace(counts=counts, keys=means[..., :dk], values=means[..., dk:], size=new_size, tokens=tokens),
        slots,
    )
