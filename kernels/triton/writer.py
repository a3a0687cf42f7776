"""The write of a batch: one update with any number of tokens."""

from typing import Any

import torch
from torch import Tensor

from kernels.growth import target_size
from kernels.options import DictionaryOptions
from kernels.state import DictionaryState
from kernels.triton import tiles
from kernels.triton.batch import assign_batch, choose_batch, settle_batch, spoil_batch, write_batch
from kernels.triton.calls import random_ranks
from kernels.triton.launch import TYPES, launch, on, power, precision, strides, widest


def update(
    state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor | None
) -> tuple[DictionaryState, Tensor]:
    """See `kernels.update`; arguments are checked and served, and a state of one row gets tokens of one row.

    Returns:
        The new state, and the slots `[B, T, G]` int64.
    """
    with torch.no_grad(), on(k.device):
        return _update(state, k, v, options, mask)


def _update(
    state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor | None
) -> tuple[DictionaryState, Tensor]:
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
    new_size = state.size.clone(memory_format=torch.contiguous_format)
    dtype = widest(k, v)
    usual = options.learning_rate == "adaptive" and options.seeds == "spread"
    tile = tiles.tile("scan", dtype, max(dk, dv), (t, n), plain=usual, device=device)._replace(registers=None)
    arguments: dict[str, Any] = {
        "k": k,
        "v": v,
        "mask": None if mask is None else mask.contiguous().view(torch.uint8),
        "size": state.size.contiguous(),
        "new_size": new_size,
        "leaders": leaders,
        "news": new,
        "means": means,
        "counts": counts,
        "similarity": means.new_empty(b, g, t),
        "order": torch.empty_like(codes),
        "codes": codes,
        "ranks": ranks,
        **strides("k", k),
        **strides("v", v),
        "T": t,
        "N": n,
        "G": g,
        "threshold": float(options.novelty_threshold),
        "rate": float(options.rate),
        "MASKED": mask is not None,
        "NOVELTY": options.growth == "novelty",
        "RANKED": ranks is not None,
        "JOIN_SEEDS": options.assignment == "all",
        "LEARNING_RATE": options.learning_rate,
        "DTYPE": TYPES[dtype],
        "PRECISION": precision(device),
        "DK": dk,
        "DV": dv,
        "BLOCK_K": power(dk),
        "BLOCK_V": power(dv),
    }
    for kernel in (assign_batch, choose_batch, settle_batch, write_batch, spoil_batch):
        launch(kernel, (-(-t // tile.rows), b * g), tile, arguments)
    slots = torch.where(codes < -1, -2 - codes, codes).long().transpose(1, 2)
    return (
        state.replace(counts=counts, keys=means[..., :dk], values=means[..., dk:], size=new_size, tokens=tokens),
        slots,
    )
