"""What a token costs in decoding, after so many others: OVQ against softmax attention over a cache.

The cache is allocated once and filled in place, as inference engines do; one that grows by concatenation copies itself
at every token, and would flatter OVQ.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels import DictionaryOptions, DictionaryState, ovq_attention

LONGEST = 32  # times the capacity: a dictionary that has read more costs no more, and reading takes time


def measure_decoding(
    positions: Sequence[int], *, capacity: int, chunk: int, heads: int, head_dim: int, rounds: int = 5
) -> list[dict[str, Any]]:
    """Measure a chunk's worth of tokens, one after the other, of one sequence and one layer without its projections.

    Args:
        positions: tokens before.
        capacity: slots per head (N).
        chunk: tokens per chunk (L); the dictionary is written once in as many tokens, which is part of the mean.
        heads: H.
        head_dim: D.
        rounds: of each method, in turn, after one that does not count.

    Returns:
        For each position `tokens`, and of `ovq`, `chunked` (in PyTorch's operations) and `softmax` the seconds a token:
        median and range over rounds.
    """
    generator = torch.Generator().manual_seed(0)
    options = DictionaryOptions(capacity=capacity, chunk_size=chunk)
    beta = torch.full((heads,), math.sqrt(head_dim))
    rows = []
    for position in positions:
        tokens = torch.randn(3, 1, position + chunk, heads, head_dim, generator=generator)
        cache = torch.zeros(2, 1, heads, position + chunk, head_dim)
        cache[:, :, :, :position] = tokens[1:, :, :position].transpose(2, 3)
        q, k, v = tokens[:, :, max(0, position - LONGEST * capacity) : position]
        with torch.no_grad():
            _, state = ovq_attention(q, k, v, beta, options, output_final_state=True)
        new = tokens[:, :, position:]
        methods: dict[str, Callable[[], Tensor]] = {
            "ovq": partial(decode_ovq, new, beta, options, state, "auto"),
            "chunked": partial(decode_ovq, new, beta, options, state, "chunked"),
            "softmax": partial(decode_softmax, new, cache),
        }
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        for number in range(rounds + 1):
            for method, decode in methods.items():
                begun = time.perf_counter()
                decode()
                if number:
                    seconds[method].append((time.perf_counter() - begun) / chunk)
        found = {m: {"seconds": statistics.median(s), "seconds_range": [min(s), max(s)]} for m, s in seconds.items()}
        rows.append({"tokens": position, **found})
    return rows


@torch.no_grad()
def decode_ovq(
    tokens: Tensor, beta: Tensor, options: DictionaryOptions, state: DictionaryState | None, implementation: str
) -> Tensor:
    """Return what queries, keys and values `[3, B, T, H, D]` read, one token after the other, as `[B, T, H, D]`."""
    outputs = []
    for t in range(tokens.shape[2]):
        q, k, v = tokens[:, :, t : t + 1]
        o, state = ovq_attention(
            q,
            k,
            v,
            beta,
            options,
            initial_state=state,
            output_final_state=True,
            implementation=implementation,
        )
        outputs.append(o)
    return torch.cat(outputs, 1)


@torch.no_grad()
def decode_softmax(tokens: Tensor, cache: Tensor) -> Tensor:
    """Return the same of softmax attention; `cache [2, B, H, P + T, D]` has keys and values of P tokens, and gets T."""
    outputs = []
    start = cache.shape[3] - tokens.shape[2]
    for t in range(tokens.shape[2]):
        cache[:, :, :, start + t] = tokens[1:, :, t]
        seen = cache[:, :, :, : start + t + 1]
        q = tokens[0, :, t, :, None]
        outputs.append(functional.scaled_dot_product_attention(q, seen[0], seen[1]))
    return torch.cat(outputs, 2).transpose(1, 2)
