"""A short causal convolution over tokens, as linear-time mixers use before they compare keys with queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShortConvolution(nn.Module):
    """Depthwise causal convolution: every feature is mixed with its own past of `size - 1` tokens (Fu et al. 2023).

    It starts as the identity, so a layer with it starts as the layer without.

    Args:
        features: features per token (C).
        size: tokens that one output sees, its own included.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.size = size
        weight = torch.zeros(features, 1, size)
        weight[..., -1] = 1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: `[B, T, C]`.
            past: the inputs before, `[B, size - 1, C]`; zeros if None.

        Returns:
            The output `[B, T, C]`, and the last `size - 1` inputs for the call that goes on.
        """
        if past is None:
            past = x.new_zeros(len(x), self.size - 1, x.shape[-1])
        if not x.shape[1]:
            return x, past
        x = torch.cat((past, x), 1)
        y = functional.conv1d(x.transpose(1, 2), self.weight, groups=x.shape[-1]).transpose(1, 2)
        return y, x[:, x.shape[1] - (self.size - 1) :]

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"features={self.weight.shape[0]}, size={self.size}"
