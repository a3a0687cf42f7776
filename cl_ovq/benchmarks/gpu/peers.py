"""Whom the operator is timed beside: fused attention of two makes, and flash-linear-attention's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
RECURRENT = ("gated_delta", "mamba2", "gsa")  # flash-linear-attention's chunked kernels, forward


def attention(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of `[B, T, H, D]` by one backend and no other."""
    with sdpa_kernel(backend):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def recurrent(name: str, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """A function that mixes `[B, T, H, D]`, its gates drawn now; GSA has 64 slots, as is usual."""
    b, t, h, _ = q.shape
    options: dict[str, Any] = {"device": q.device}
    gate = logsigmoid(torch.randn(b, t, h, **options))
    if name == "gated_delta":
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        strength = torch.rand(b, t, h, dtype=q.dtype, **options)
        return lambda: chunk_gated_delta_rule(q=q, k=k, v=v, g=gate, beta=strength, use_qk_l2norm_in_kernel=True)[0]
    if name == "mamba2":
        from fla.ops.simple_gla import chunk_simple_gla

        return lambda: chunk_simple_gla(q=q, k=k, v=v, g=gate)[0]
    from fla.ops.gsa import chunk_gsa

    slots = torch.randn(b, t, h, 64, dtype=q.dtype, **options)
    decay = logsigmoid(slots.float()).to(q.dtype) / 16
    return lambda: chunk_gsa(q=q, k=k, v=v, s=slots, g=decay)[0]
