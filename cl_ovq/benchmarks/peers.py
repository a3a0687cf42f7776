"""What OVQ is measured beside: itself in PyTorch, exact attention, a plain OVQ of few lines, and a gated recurrence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cl_ovq.mixers.recurrences import gated_delta_rule
from kernels import DictionaryOptions, ovq_attention
from kernels.growth import target_size

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
PEERS = {
    "chunked": "chunked",
    "plain": "plain OVQ",
    "gated_deltanet": "Gated DeltaNet",
}


def attention(method: str, beta: Tensor, options: DictionaryOptions) -> Attend:
    """Return a method as a function of q, k and v `[B, T, H, D]`.

    Args:
        method: `ovq`, `sdpa`, or a name in `PEERS`.
        beta: inverse temperatures `[H]`.
        options: of the dictionary.
    """
    if method == "sdpa":
        return exact_attention
    if method == "plain":
        return lambda q, k, v: plain_ovq(q, k, v, beta, options)
    if method == "gated_deltanet":
        return gated_deltanet
    name = "auto" if method == "ovq" else method
    return lambda q, k, v: ovq_attention(q, k, v, beta, options, implementation=name)[0]


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally over all tokens `[B, T, H, D]` with PyTorch's fused function."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def plain_ovq(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, options: DictionaryOptions) -> Tensor:
    """OVQ attention as one writes it in a few lines: fused attention with a mask for each chunk, and autograd.

    The scheme that arXiv 2605.09877 describes for its comparison: a token joins a slot that was there before its chunk
    (`assignment=old`), means are running means, and the logarithm of a slot's count is part of the mask.

    Args:
        q: `[B, T, H, D]`, and k and v likewise; q and k are normalised here.
        k: keys.
        v: values.
        beta: inverse temperatures `[H]`.
        options: capacity, chunk size and growth schedule; else the operator's defaults, but `assignment`.

    Returns:
        `[B, T, H, D]`.
    """
    q, k, v = (x.transpose(1, 2) for x in (functional.normalize(q, dim=-1), functional.normalize(k, dim=-1), v))
    q = q * beta[:, None, None]
    keys, values = k[:, :, :0], v[:, :, :0]
    counts = k.new_zeros(*k.shape[:2], 0)
    outputs = []
    for start in range(0, k.shape[2], options.chunk_size):
        own_q, own_k, own_v = (x[:, :, start : start + options.chunk_size] for x in (q, k, v))
        length, size = own_k.shape[2], keys.shape[2]
        later = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        slots = counts.log()[:, :, None].expand(-1, -1, length, -1)
        mask = torch.cat([slots, later.expand(*slots.shape[:3], -1)], -1)
        seen = torch.cat([keys, own_k], 2), torch.cat([values, own_v], 2)
        outputs.append(functional.scaled_dot_product_attention(own_q, *seen, attn_mask=mask, scale=1.0))
        if start + length == k.shape[2]:
            break
        with torch.no_grad():
            new = min(length, int(target_size(torch.tensor(start + length), options)) - size)
            similarity, slot = (own_k @ (keys if size else own_k[:, :, :1]).mT).max(-1)
            if not size:
                similarity[..., 0] = -torch.inf  # the first token is the first slot
            seeds = similarity.topk(new, largest=False).indices.sort().values
            slot.scatter_(2, seeds, torch.arange(size, size + new, device=q.device).expand_as(seeds))
            joined = functional.pad(counts, (0, new)).scatter_add(2, slot, torch.ones_like(similarity))
        index = slot[..., None].expand_as(own_k)
        keys, values = (
            ((functional.pad(means * counts[..., None], (0, 0, 0, new))).scatter_add(2, index, own)) / joined[..., None]
            for means, own in ((keys, own_k), (values, own_v))
        )
        counts = joined
    return torch.cat(outputs, 2).transpose(1, 2)


def gated_deltanet(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The gated delta rule on `[B, T, H, D]`, with gates that forget little and write half."""
    gates = q.new_full(q.shape[:3], -0.01), q.new_full(q.shape[:3], 0.5)
    return gated_delta_rule(q * q.shape[-1] ** -0.5, functional.normalize(k, dim=-1), v, *gates, None)[0]
