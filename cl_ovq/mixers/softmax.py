"""Causal softmax attention: exact, with a state that grows with every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cl_ovq.mixers.base import MIXERS
from cl_ovq.mixers.projected import Memory, ProjectedMixer
from cl_ovq.mixers.rotary import rotate
from cl_ovq.mixers.scalable import ScalableOptions, log_length
from cl_ovq.options import option


class SoftmaxAttention(ProjectedMixer):
    """Multi-head causal attention (Vaswani et al. 2017) through PyTorch's `scaled_dot_product_attention`.

    Args:
        width: features per token (C).
        heads: attention heads (H); divides `width`.
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
        rotary: whether queries and keys carry rotary positions; needs heads of even size.
        scalable_softmax: whether logits grow with the logarithm of the tokens that a query sees, see `scalable`.
    """

    def __init__(
        self, *, width: int, heads: int, convolution: int = 0, rotary: bool = False, scalable_softmax: bool = False
    ) -> None:
        super().__init__(width=width, features=3 * width, output=width, convolution=convolution)
        self.heads = heads
        self.head_dim = width // heads
        self.rotary = rotary
        self.scalable_softmax = scalable_softmax

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Attend; the memory is the cache of keys, values `[B, H, S, D]` and mask `[B, S]`."""
        batch, tokens, _ = features.shape
        q, k, v = features.view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # [B, H, T, D]
        first = 0 if memory is None else memory[0].shape[2]
        if self.rotary:
            q, k = rotate(q, first), rotate(k, first)
        if self.scalable_softmax:
            before = 0 if memory is None else memory[2].sum(-1)
            q = q * log_length(before, mask, features)[:, None, :, None]
        valid = torch.ones(batch, tokens, dtype=torch.bool, device=features.device) if mask is None else mask
        if memory is not None:
            k, v, valid = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2), torch.cat((memory[2], valid), 1)
        scale = self.sharpness * self.head_dim**-0.5
        if mask is None and memory is None:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        else:
            seen = k.shape[2]
            order = torch.arange(seen, device=k.device) <= torch.arange(first, seen, device=k.device)[:, None]
            visible = order & valid[:, None, None, :]  # [B, 1, T, S]
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
            y = y * visible.any(-1, keepdim=True)  # a query that sees nothing gives zero, not NaN
        return y.transpose(1, 2).flatten(2), (k, v, valid)

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of the cache of keys, values and mask."""
        return tokens * (2 * self.heads * self.head_dim * self.qkv.weight.element_size() + 1)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}, rotary={self.rotary}"


@dataclass
class SoftmaxOptions(ScalableOptions):
    """The options of softmax attention."""

    position: str = option("none", "position encoding of queries and keys", choices=("none", "rotary"))


@MIXERS.enter(
    "softmax",
    "causal softmax attention (Vaswani et al. 2017): exact; the state grows with every token",
    options=SoftmaxOptions,
    rotary=lambda options: options.position == "rotary",
    sharpens=True,
)
def build_softmax(options: SoftmaxOptions) -> SoftmaxAttention:
    """Build softmax attention."""
    return SoftmaxAttention(
        width=options.width,
        heads=options.heads,
        convolution=options.convolution,
        rotary=options.position == "rotary",
        scalable_softmax=options.scalable_softmax,
    )
