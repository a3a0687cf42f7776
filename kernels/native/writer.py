"""One update of dictionaries with any number of tokens: a scan of one chunk that nobody reads."""

import torch
from torch import Tensor

from kernels.growth import target_size
from kernels.native.calls import call_arguments
from kernels.native.library import build, is_loaded
from kernels.options import DictionaryOptions
from kernels.schema import Arguments
from kernels.state import DictionaryState


@torch.no_grad()
def update(
    state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor | None
) -> tuple[DictionaryState, Tensor]:
    """See `kernels.update`; arguments are checked and served, and a state of one row gets tokens of one row.

    Returns:
        The new state, and the slots `[B, T, G]` int64.
    """
    if not is_loaded():
        build()
    (b, t, g, dk), dv = k.shape, v.shape[-1]
    tokens = state.tokens + (t if mask is None else mask.sum(-1))
    x = Arguments(k.new_empty(b, t, 0, dk), k, v, k.new_empty(0), None, mask, state, options)
    o, no_snapshots = state.keys.new_empty(0), state.keys.new_empty(0)
    means = state.keys.new_zeros(b, g, options.capacity, dk + dv)
    counts, size = torch.zeros_like(state.counts), torch.zeros_like(state.size)
    codes = torch.empty(b, g, t, dtype=torch.int32)
    results = [o, means, counts, size, codes, no_snapshots]
    with torch.autocast("cpu", enabled=False):
        arguments = call_arguments(x, 1, chunk=t)
        torch.ops.ovq_native.forward(*arguments, target_size(tokens, options)[:, None].contiguous(), results)
    slots = torch.where(codes < -1, -2 - codes, codes).long().transpose(1, 2)
    keys, values = means[..., :dk].contiguous(), means[..., dk:].contiguous()
    return state.replace(counts=counts, keys=keys, values=values, size=size, tokens=tokens), slots
