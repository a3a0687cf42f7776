"""The residual block that every transformer here is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cl_ovq.mixers import Mixer, StackOptions
from cl_ovq.options import option


@dataclass
class BlockOptions(StackOptions):
    """What blocks of mixer and MLP have."""

    mlp_ratio: float = option(
        2.0, "hidden size of a block's MLP, in multiples of width", exclusive_minimum=0, maximum=1024
    )
    dropout: float = option(0.0, "dropout rate after mixer and MLP", minimum=0, maximum=0.99, adjustable=True)


class Block(nn.Module):
    """Pre-norm residual block: mixer, then MLP.

    Args:
        width: features per token (C).
        mixer: mixes tokens.
        hidden: hidden features of the MLP.
        dropout: share of features dropped after mixer and MLP.
    """

    def __init__(self, *, width: int, mixer: Mixer, hidden: int, dropout: float) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, state: Any = None, return_state: bool = False
    ) -> tuple[Tensor, Any]:
        """Map `[B, T, C]` to `[B, T, C]`, and return the mixer's state; see `Mixer.forward`."""
        mixed, state = self.mixer(self.mixer_norm(x), mask=mask, state=state, return_state=return_state)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), state
