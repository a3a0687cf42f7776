"""Gated DeltaNet: a matrix memory that is decayed, and corrected where a key is written again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.mixers.base import MIXERS, AttentionOptions
from cl_ovq.mixers.projected import Memory, ProjectedMixer
from cl_ovq.mixers.recurrences import gated_delta_rule, require_library
from cl_ovq.options import option
from kernels.numerics import normalise

SHORTEST_STEP = 1e-3


class GatedDeltaNet(ProjectedMixer):
    """The gated delta rule with an output gate (Yang, Kautz, Hatamizadeh 2024), on flash-linear-attention.

    Args:
        width: features per token (C).
        heads: heads (H); divides `width`.
        dt_max: see `initial_step_bias`.
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
    """

    def __init__(self, *, width: int, heads: int, dt_max: float = 0.1, convolution: int = 0) -> None:
        require_library("gated_delta")
        super().__init__(width=width, features=3 * width, output=width, convolution=convolution)
        self.heads = heads
        self.head_dim = width // heads
        self.gates = nn.Linear(width, 2 * heads + width, bias=False)  # decay, writing strength, output gate
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.step_bias = nn.Parameter(initial_step_bias(heads, dt_max))
        self.norm = nn.RMSNorm(self.head_dim)

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Mix; the memory is one matrix per head, `[B, H, D, D]` fp32."""
        q, k, v = functional.silu(features).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)  # [B, T, H, D]
        step, strength, gate = self.gates(x).split((self.heads, self.heads, self.heads * self.head_dim), -1)
        g = -self.log_rate.exp() * functional.softplus(step + self.step_bias)  # [B, T, H]
        beta = strength.sigmoid()
        if mask is not None:
            g, beta = g * mask[..., None], beta * mask[..., None]
        state = None if memory is None else memory[0]
        if not features.shape[1]:
            empty = features.new_zeros(len(features), self.heads, self.head_dim, self.head_dim, dtype=torch.float32)
            return features.new_zeros(*gate.shape), (empty if state is None else state,)
        y, state = gated_delta_rule(normalise(q) * self.head_dim**-0.5, normalise(k), v, g, beta, state)
        return self.norm(y.to(self.norm.weight.dtype)).flatten(2) * functional.silu(gate), (state,)

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of the matrices, whatever the number of tokens."""
        return self.heads * self.head_dim**2 * torch.float32.itemsize

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}"


def initial_step_bias(heads: int, longest: float) -> Tensor:
    """Return biases whose softplus is spread evenly in the logarithm between two step sizes (Gu and Dao 2023).

    Args:
        heads: one bias each.
        longest: the longest step; the shortest is `SHORTEST_STEP`. Published models have 0.1.
    """
    step = SHORTEST_STEP * (longest / SHORTEST_STEP) ** torch.rand(heads)
    return step + torch.log(-torch.expm1(-step))


@dataclass
class StepOptions(AttentionOptions):
    """The steps of a state that decays."""

    dt_max: float = option(
        0.1,
        "largest initial step of a head; the smallest is 0.001. Large steps make a state forget, so models with few "
        "heads may need small ones to see far",
        minimum=0.001,
        maximum=1000,
    )


@MIXERS.enter(
    "gated_delta",
    "Gated DeltaNet (Yang et al. 2024): a matrix state with decay and a delta-rule update; extra: fla",
    options=StepOptions,
)
def build_gated_delta(options: StepOptions) -> GatedDeltaNet:
    """Build Gated DeltaNet."""
    return GatedDeltaNet(
        width=options.width, heads=options.heads, dt_max=options.dt_max, convolution=options.convolution
    )
