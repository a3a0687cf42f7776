"""Causal softmax attention over the last tokens only, with rotary positions: exact nearby, blind beyond."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cl_ovq.mixers.base import MIXERS, AttentionOptions
from cl_ovq.mixers.projected import Memory, ProjectedMixer
from cl_ovq.mixers.rotary import rotate
from cl_ovq.options import COUNT, option


class SlidingWindowAttention(ProjectedMixer):
    """Multi-head attention of each token over the last `window` tokens (Beltagy et al. 2020), in time `T x window`.

    Args:
        width: features per token (C).
        heads: attention heads (H); divides `width` into heads of even size.
        window: tokens that a query sees, its own included (W).
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
    """

    def __init__(self, *, width: int, heads: int, window: int, convolution: int = 0) -> None:
        super().__init__(width=width, features=3 * width, output=width, convolution=convolution)
        self.heads = heads
        self.head_dim = width // heads
        self.window = window

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Attend; the memory is the last `W - 1` keys, values `[B, H, W - 1, D]` and mask `[B, W - 1]`, or fewer.

        Keys are kept as they were before rotation, and rotated by their place in a block: only distances count, and so
        no position has to be kept.
        """
        batch, tokens, _ = features.shape
        past = self.window - 1
        q, k, v = features.view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # [B, H, T, D]
        valid = torch.ones(batch, tokens, dtype=torch.bool, device=features.device) if mask is None else mask
        if memory is not None:
            k, v, valid = torch.cat((memory[0], k), 2), torch.cat((memory[1], v), 2), torch.cat((memory[2], valid), 1)
        seen = k.shape[2]
        kept = slice(max(0, seen - past), seen)
        memory = k[:, :, kept], v[:, :, kept], valid[:, kept]
        if not tokens:
            return features.new_zeros(batch, 0, self.heads * self.head_dim), memory

        # Blocks of queries, each beside the keys from W - 1 before its first to its last.
        block = min(self.window, tokens)
        end = -tokens % block  # to a whole number of blocks
        before = past - (seen - tokens)
        k, v = (functional.pad(part, (0, 0, before, end)).unfold(2, block + past, block) for part in (k, v))
        k, v = k.transpose(-1, -2), v.transpose(-1, -2)  # [B, H, blocks, block + W - 1, D]
        q = functional.pad(q, (0, 0, 0, end)).unflatten(2, (-1, block))
        valid = functional.pad(valid, (before, end)).unfold(1, block + past, block)  # [B, blocks, block + W - 1]
        distance = torch.arange(past, block + past, device=k.device)[:, None] - torch.arange(
            block + past, device=k.device
        )
        visible = (distance >= 0) & (distance < self.window) & valid[:, None, :, None, :]
        y = functional.scaled_dot_product_attention(rotate(q, past), rotate(k), v, attn_mask=visible)
        y = y * visible.any(-1, keepdim=True)  # a query that sees nothing gives zero, not NaN
        return y.flatten(2, 3)[:, :, :tokens].transpose(1, 2).flatten(2), memory

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of the last keys, values and mask."""
        kept = min(tokens, self.window - 1)
        return kept * (2 * self.heads * self.head_dim * self.qkv.weight.element_size() + 1)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}, window={self.window}"


@dataclass
class SlidingWindowOptions(AttentionOptions):
    """The options of sliding-window attention."""

    window: int = option(64, "tokens that a query sees, including its own", minimum=1, maximum=COUNT)


@MIXERS.enter(
    "sliding_window",
    "softmax attention over the last model.window tokens, with rotary positions (Beltagy et al. 2020)",
    options=SlidingWindowOptions,
    rotary=lambda options: True,
)
def build_sliding_window(options: SlidingWindowOptions) -> SlidingWindowAttention:
    """Build sliding-window attention."""
    return SlidingWindowAttention(
        width=options.width, heads=options.heads, window=options.window, convolution=options.convolution
    )
