"""Linear attention: softmax replaced by a product of positive features, so that the past is one sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cl_ovq.mixers.base import MIXERS, AttentionOptions
from cl_ovq.mixers.projected import Memory, ProjectedMixer

CHUNK = 64


class LinearAttention(ProjectedMixer):
    """Multi-head causal linear attention with features `elu + 1` (Katharopoulos et al. 2020), in linear time.

    `y_t = sum_{j<=t} (f(q_t) f(k_j)) v_j / sum_{j<=t} f(q_t) f(k_j)`, summed exactly within chunks of tokens and by
    running sums across them.

    Args:
        width: features per token (C).
        heads: attention heads (H); divides `width`.
        convolution: tokens that a short causal convolution of queries, keys and values sees; 0 for none.
    """

    EXACT = True

    def __init__(self, *, width: int, heads: int, convolution: int = 0) -> None:
        super().__init__(width=width, features=3 * width, output=width, convolution=convolution)
        self.heads = heads
        self.head_dim = width // heads

    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Attend; the memory is the running sum of key features times values and ones, `[B, H, D, D + 1]`."""
        batch, tokens, _ = features.shape
        exact = torch.promote_types(features.dtype, torch.float32)
        q, k, v = features.to(exact).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        if mask is not None:
            k = k * mask[:, None, :, None]
        v = functional.pad(v, (0, 1), value=1.0)  # the last column sums the weights
        chunk = max(1, min(CHUNK, tokens))  # one token, as in decoding, is not padded to a whole chunk
        rest = -tokens % chunk
        # [B, H, chunks, chunk, D]
        q, k, v = (functional.pad(part, (0, 0, 0, rest)).unflatten(2, (-1, chunk)) for part in (q, k, v))
        sums = k.transpose(-1, -2) @ v  # [B, H, chunks, D, D + 1]
        first = sums.new_zeros(*sums.shape[:2], *sums.shape[3:]) if memory is None else memory[0]
        before = torch.cat((first[:, :, None], sums), 2).cumsum(2)  # [B, H, chunks + 1, D, D + 1]
        y = q @ before[:, :, :-1] + (q @ k.transpose(-1, -2)).tril() @ v
        y = y[..., :-1] / y[..., -1:].clamp(min=torch.finfo(exact).tiny)
        y = y.flatten(2, 3)[:, :, :tokens].transpose(1, 2).flatten(2)
        return y.to(features.dtype), (before[:, :, -1].clone(),)

    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of the running sums, whatever the number of tokens."""
        size = torch.promote_types(self.qkv.weight.dtype, torch.float32).itemsize
        return self.heads * self.head_dim * (self.head_dim + 1) * size

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}"


@MIXERS.enter(
    "linear",
    "linear attention with features elu + 1 (Katharopoulos et al. 2020): linear time, constant state",
    options=AttentionOptions,
)
def build_linear(options: AttentionOptions) -> LinearAttention:
    """Build linear attention."""
    return LinearAttention(width=options.width, heads=options.heads, convolution=options.convolution)
