"""Gated slot attention: softmax over a fixed number of slots that every token is written into, with forgetting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.mixers.base import MIXERS, AttentionOptions
from cl_ovq.mixers.projected import Memory, ProjectedMixer
from cl_ovq.mixers.recurrences import gated_slots, require_library
from cl_ovq.options import COUNT, option

GATE_DIVISOR = 8.0  # of a log gate, as published: slots start with a long memory


class GatedSlotAttention(ProjectedMixer):
    """GSA (Zhang et al. 2024), on flash-linear-attention.

    Args:
        width: features per token (C).
        heads: heads (H); divides `width`.
        slots: slots of each head (M).
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
    """

    def __init__(self, *, width: int, heads: int, slots: int, convolution: int = 0) -> None:
        require_library("gated_slot")
        super().__init__(width=width, features=3 * width, output=width, convolution=convolution)
        self.heads = heads
        self.head_dim = width // heads
        self.slots = slots
        self.gates = nn.Linear(width, heads * slots, bias=False)
        self.norm = nn.RMSNorm(width)

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Mix; the memory is the slots' keys `[B, H, D, M]` and values `[B, H, M, D]`, fp32."""
        q, k, v = functional.silu(features).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)  # [B, T, H, D]
        g = functional.logsigmoid(self.gates(x)).unflatten(-1, (self.heads, self.slots)) / GATE_DIVISOR
        if mask is not None:
            g = g * mask[..., None, None]
        written = -torch.expm1(g)  # nothing where nothing is forgotten
        state = None if memory is None else (memory[0], memory[1])
        if not features.shape[1]:
            sizes = (len(features), self.heads, self.head_dim, self.slots)
            empty = features.new_zeros(sizes, dtype=torch.float32)
            return features.new_zeros(*x.shape), state or (empty, empty.transpose(-1, -2))
        y, state = gated_slots(q * self.head_dim**-0.5, k, v, written, g, state)
        return self.norm(functional.silu(y.to(self.norm.weight.dtype).flatten(2))), state

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of the slots, whatever the number of tokens."""
        return 2 * self.heads * self.slots * self.head_dim * torch.float32.itemsize

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}, slots={self.slots}"


@dataclass
class GatedSlotOptions(AttentionOptions):
    """The options of gated slot attention."""

    slots: int = option(64, "slots per head", minimum=1, maximum=COUNT)


@MIXERS.enter(
    "gated_slot",
    "gated slot attention (Zhang et al. 2024): softmax over slots that decay; extra: fla",
    options=GatedSlotOptions,
)
def build_gated_slot(options: GatedSlotOptions) -> GatedSlotAttention:
    """Build gated slot attention."""
    return GatedSlotAttention(
        width=options.width, heads=options.heads, slots=options.slots, convolution=options.convolution
    )
