"""Mamba-2: a selective state-space model whose state decays by one number per head and token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.mixers.base import MIXERS
from cl_ovq.mixers.gated_delta import StepOptions, initial_step_bias
from cl_ovq.mixers.projected import Memory, ProjectedMixer
from cl_ovq.mixers.recurrences import decaying_sum, require_library
from cl_ovq.options import WIDEST, option

EXPANSION = 2  # inner features in multiples of the width, as published


class Mamba2(ProjectedMixer):
    """State-space duality (Dao and Gu 2024) on flash-linear-attention; keys and queries are shared by all heads.

    Args:
        width: features per token (C).
        heads: heads (H); divides `2 * width`.
        state_size: features of a key and a query (K).
        dt_max: see `initial_step_bias`.
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
    """

    def __init__(self, *, width: int, heads: int, state_size: int, dt_max: float = 0.1, convolution: int = 0) -> None:
        require_library("mamba2")
        inner = EXPANSION * width
        super().__init__(width=width, features=inner + 2 * state_size, output=inner, convolution=convolution)
        self.heads = heads
        self.head_dim = inner // heads
        self.state_size = state_size
        self.gates = nn.Linear(width, heads + inner, bias=False)  # step size, output gate
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.step_bias = nn.Parameter(initial_step_bias(heads, dt_max))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner)

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Mix; the memory is one matrix per head, `[B, H, K, P]` fp32, with P the features of a head."""
        inner = self.heads * self.head_dim
        v, k, q = functional.silu(features).split((inner, self.state_size, self.state_size), -1)
        v = v.unflatten(-1, (self.heads, self.head_dim))  # [B, T, H, P]
        q, k = (part[:, :, None].expand(-1, -1, self.heads, -1) for part in (q, k))  # [B, T, H, K]
        step, gate = self.gates(x).split((self.heads, inner), -1)
        step = functional.softplus(step + self.step_bias)  # [B, T, H]
        if mask is not None:
            step = step * mask[..., None]
        state = None if memory is None else memory[0]
        if not features.shape[1]:
            empty = features.new_zeros(len(features), self.heads, self.state_size, self.head_dim, dtype=torch.float32)
            return features.new_zeros(*gate.shape), (empty if state is None else state,)
        y, state = decaying_sum(q, k, v * step[..., None], -self.log_rate.exp() * step, state)
        y = y.to(features.dtype) + self.skip[:, None] * v
        return self.norm(y.flatten(2) * functional.silu(gate)), (state,)

    def queries_and_keys(self) -> tuple[slice, slice]:
        """Return which of the projected features are queries, and which are keys."""
        inner = self.heads * self.head_dim
        return slice(inner + self.state_size, None), slice(inner, inner + self.state_size)

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of the matrices, whatever the number of tokens."""
        return self.heads * self.state_size * self.head_dim * torch.float32.itemsize

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}, state_size={self.state_size}"


@dataclass
class Mamba2Options(StepOptions):
    """The options of Mamba-2."""

    state_size: int = option(64, "size of keys and queries", minimum=1, maximum=WIDEST)


@MIXERS.enter(
    "mamba2",
    "Mamba-2 (Dao and Gu 2024): a state-space model with one decay per head and token; extra: fla",
    options=Mamba2Options,
)
def build_mamba2(options: Mamba2Options) -> Mamba2:
    """Build Mamba-2."""
    return Mamba2(
        width=options.width,
        heads=options.heads,
        state_size=options.state_size,
        dt_max=options.dt_max,
        convolution=options.convolution,
    )
