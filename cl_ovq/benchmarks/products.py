"""How fast this machine multiplies matrices, by which library and in which shapes: what OVQ's own rate is judged by.

A CPU's rate depends on the library: on AMD processors MKL, which PyTorch calls, may take a slow path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

SQUARE = 2048


def product_rates(*, capacity: int, chunk: int, heads: int, head_dim: int, rounds: int = 5) -> dict[str, float]:
    """Return floating-point operations per second of fp32 products on PyTorch's number of threads, the best of some.

    Args:
        capacity: slots per head (N).
        chunk: tokens per chunk (L).
        heads: H.
        head_dim: D.
        rounds: timings of each, in turn, after one that does not count.

    Returns:
        Rates by what was multiplied: large squares by PyTorch, by NumPy's library and by oneDNN (where PyTorch has it),
        then OVQ's logits `[L, D] [D, N]` and read-out `[L, N] [N, D]`, for a head alone and for all heads at once.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    square = normal(SQUARE, SQUARE), normal(SQUARE, SQUARE)
    arrays = [x.numpy() for x in square]
    queries, keys = normal(heads, chunk, head_dim), normal(heads, capacity, head_dim)
    weights, one = normal(heads, chunk, capacity), 2.0 * chunk * capacity * head_dim
    products: dict[str, tuple[float, Callable[[], Any]]] = {
        "large squares, PyTorch": (2.0 * SQUARE**3, lambda: square[0] @ square[1]),
        "large squares, NumPy": (2.0 * SQUARE**3, lambda: np.matmul(*arrays)),
        "logits of a chunk, one head": (one, lambda: queries[0] @ keys[0].T),
        "logits of a chunk, all heads at once": (heads * one, lambda: queries @ keys.mT),
        "read-out of a chunk, one head": (one, lambda: weights[0] @ keys[0]),
        "read-out of a chunk, all heads at once": (heads * one, lambda: weights @ keys),
    }
    if torch.backends.mkldnn.is_available():
        dense = [x.to_mkldnn() for x in square]
        products["large squares, oneDNN"] = (2.0 * SQUARE**3, lambda: torch._C._nn.linear(*dense))
    best = dict.fromkeys(products, float("inf"))
    with torch.no_grad(), threadpool_limits(torch.get_num_threads()):
        for _ in range(rounds + 1):
            for name, (_, multiply) in products.items():
                begun = time.perf_counter()
                multiply()
                best[name] = min(best[name], time.perf_counter() - begun)
    return {name: operations / best[name] for name, (operations, _) in products.items()}
