"""Causal softmax attention: exact, with a state that grows with every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.config.schema import DictionaryConfig, ModelConfig
from cl_ovq.mixers.base import MIXERS, Mixer


class SoftmaxAttention(Mixer):
    """Multi-head causal attention (Vaswani et al. 2017) through PyTorch's `scaled_dot_product_attention`.

    Args:
        width: features per token (C).
        heads: attention heads (H); divides `width`.
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        state: tuple[Tensor, Tensor, Tensor] | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """Mix tokens; see `Mixer.forward`. The state is the cache of keys, values and mask."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # [B, H, T, D]
        valid = torch.ones(batch, tokens, dtype=torch.bool, device=x.device) if mask is None else mask
        if state is not None:
            k, v = torch.cat((state[0], k), 2), torch.cat((state[1], v), 2)
            valid = torch.cat((state[2], valid), 1)
        if mask is None and state is None:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = k.shape[2]
            order = torch.arange(seen, device=x.device) <= torch.arange(seen - tokens, seen, device=x.device)[:, None]
            visible = order & valid[:, None, None, :]  # [B, 1, T, S]
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
            y = y * visible.any(-1, keepdim=True)  # a query that sees nothing gives zero, not NaN
        y = self.out(y.transpose(1, 2).flatten(2))
        if mask is not None:
            y = y * mask[..., None]
        return y, (k, v, valid) if return_state else None

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of the cache of keys, values and mask."""
        return tokens * (2 * self.heads * self.head_dim * self.qkv.weight.element_size() + 1)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}"


@MIXERS.enter("softmax", "causal softmax attention (Vaswani et al. 2017): exact, state grows with every token")
def _build(model: ModelConfig, dictionary: DictionaryConfig) -> SoftmaxAttention:
    return SoftmaxAttention(width=model.width, heads=model.heads)
