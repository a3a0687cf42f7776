"""Gated recurrences of flash-linear-attention: its kernels on a GPU, its `naive` chunk functions on a CPU.

The library is imported when a mixer that needs it is built: the import takes seconds.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from cl_ovq.errors import UserError

CPU_CHUNK = 32  # the naive functions loop over the tokens of a chunk and over chunks: a balance of the two


def require_library(mixer: str) -> None:
    """Import flash-linear-attention for a mixer.

    Raises:
        UserError: it is not installed.
    """
    try:
        _import("fla.ops")
    except ImportError as error:
        raise UserError(
            f"model.mixer: '{mixer}' requires flash-linear-attention ({error}): install it with "
            "`pip install 'cl-ovq[fla]'`, or choose another mixer"
        ) from error


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`S_t = exp(g_t) (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'`, `o_t = S_t' q_t` (Yang et al. 2024).

    Args:
        q: `[B, T, H, K]`.
        k: `[B, T, H, K]`, normalised.
        v: `[B, T, H, V]`.
        g: log decay `[B, T, H]`.
        beta: writing strength `[B, T, H]`.
        state: `[B, H, K, V]` fp32, or None for zeros.

    Returns:
        `[B, T, H, V]` and the state after the last token.
    """
    common: dict[str, Any] = {"scale": 1.0, "initial_state": state, "output_final_state": True}
    if q.is_cuda:
        kernel = _import("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        return kernel(q=q, k=k, v=v, g=g, beta=beta, **common)
    naive = _import("fla.ops.gated_delta_rule.naive").naive_chunk_gated_delta_rule
    with torch.autocast("cpu", enabled=False):  # they compute in fp32, and autocast would narrow their products
        return naive(q=q, k=k, v=v, g=g, beta=beta, chunk_size=max(1, min(CPU_CHUNK, q.shape[1])), **common)


def decaying_sum(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """`S_t = exp(g_t) S_{t-1} + k_t v_t'`, `o_t = S_t' q_t`: the recurrence of Mamba-2 (Dao and Gu 2024).

    Args:
        q: `[B, T, H, K]`.
        k: `[B, T, H, K]`.
        v: `[B, T, H, V]`.
        g: log decay `[B, T, H]`.
        state: `[B, H, K, V]` fp32, or None for zeros.

    Returns:
        `[B, T, H, V]` and the state after the last token.
    """
    common: dict[str, Any] = {"scale": 1.0, "initial_state": state, "output_final_state": True}
    if q.is_cuda:
        return _import("fla.ops.simple_gla").chunk_simple_gla(q=q, k=k, v=v, g=g, **common)
    naive = _import("fla.ops.simple_gla.naive").naive_chunk_simple_gla
    with torch.autocast("cpu", enabled=False):
        return naive(q=q, k=k, v=v, g=g, chunk_size=max(1, min(CPU_CHUNK, q.shape[1])), **common)


def gated_slots(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Slots as a two-pass recurrence (Zhang et al. 2024), by slot m and with `p_t` a softmax over slots.

    `K_t^m = exp(g_t^m) K_{t-1}^m + s_t^m k_t`, `p_t = softmax(K_t q_t)`, the same for values, `o_t = p_t V_t`.

    Args:
        q: `[B, T, H, D]`, scaled.
        k: `[B, T, H, D]`.
        v: `[B, T, H, V]`.
        s: writing strength of each slot, `[B, T, H, M]`.
        g: log decay of each slot, `[B, T, H, M]`.
        state: slots' keys `[B, H, D, M]` and values `[B, H, M, V]` in fp32, or None for zeros.

    Returns:
        `[B, T, H, V]` and the state after the last token.
    """
    if q.is_cuda:
        kernel = _import("fla.ops.gsa").chunk_gsa
        return kernel(q=q, k=k, v=v, s=s, g=g, scale=1.0, initial_state=state, output_final_state=True)
    with torch.autocast("cpu", enabled=False):
        return chunked_slots(q, k, v, s, g, state)


def chunked_slots(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, state: tuple[Tensor, Tensor] | None, chunk: int = 16
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Compute `gated_slots` chunk by chunk; the library has only a loop over tokens for a CPU."""
    q, k, v, s, g = (part.transpose(1, 2).float() for part in (q, k, v, s, g))  # [B, H, T, ...]
    if state is None:
        keys = q.new_zeros(*q.shape[:2], q.shape[-1], s.shape[-1])
        values = q.new_zeros(*q.shape[:2], s.shape[-1], v.shape[-1])
    else:
        keys, values = state
    outputs = [v[:, :, :0]]
    for q_, k_, v_, s_, g_ in zip(*(part.split(chunk, 2) for part in (q, k, v, s, g)), strict=True):
        decay = g_.cumsum(2)  # [B, H, L, M], since the start of the chunk
        between = decay[:, :, :, None] - decay[:, :, None]  # [B, H, L, L, M]: of token j until token t
        order = torch.ones(between.shape[2:4], dtype=torch.bool, device=q.device).tril()[..., None]
        written = between.masked_fill(~order, -torch.inf).exp() * s_[:, :, None]
        logits = (q_ @ keys) * decay.exp() + torch.einsum("bhtj,bhtjm->bhtm", q_ @ k_.transpose(-1, -2), written)
        p = logits.softmax(-1)
        outputs.append((p * decay.exp()) @ values + torch.einsum("bhtm,bhtjm->bhtj", p, written) @ v_)
        left = s_ * (decay[:, :, -1:] - decay).exp()  # what is left of each token at the end of the chunk
        whole = decay[:, :, -1].exp()
        keys = keys * whole[:, :, None] + k_.transpose(-1, -2) @ left
        values = values * whole[..., None] + left.transpose(-1, -2) @ v_
    return torch.cat(outputs, 2).transpose(1, 2), (keys, values)


def _import(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU is known
        return importlib.import_module(module)
