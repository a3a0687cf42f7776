"""Online vector-quantized attention as a layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cl_ovq.config.schema import DictionaryConfig, ModelConfig
from cl_ovq.mixers.base import MIXERS, Mixer
from cl_ovq.mixers.dictionary import PersistentDictionary
from kernels import DictionaryOptions, DictionaryState, ovq_attention


class OVQAttention(Mixer):
    """Attention over a dictionary that is learned during the forward pass (Alonso, Figliolia, Millidge 2026).

    Args:
        width: features per token (C).
        heads: attention heads (H); divides `width`.
        options: the operator's options (capacity N, chunk size L, growth, ...).
        persistent: whether all sequences share one dictionary that outlives them (`layer.dictionary`); it is written by
            `layer.dictionary.write()`, not by the forward pass. Otherwise every sequence learns its own.
        implementation: of the operator: `auto`, `reference`, `chunked` or `triton`.

    A shared dictionary is the initial state of every sequence, and what a sequence adds to it in closed chunks is
    private and gone afterwards. Short sequences are best read whole (`chunk_size` at least their length).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        options: DictionaryOptions,
        persistent: bool = False,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.options = options
        self.implementation = implementation
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.log_beta = nn.Parameter(torch.full((heads,), 0.5 * math.log(self.head_dim)))
        self.dictionary = (
            PersistentDictionary(heads=heads, key_dim=self.head_dim, value_dim=self.head_dim, options=options)
            if persistent
            else None
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        state: DictionaryState | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, DictionaryState | None]:
        """Mix tokens; see `Mixer.forward`. The state is a `DictionaryState`."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).unbind(2)  # [B, T, H, D]
        if self.dictionary is not None:
            if state is None:
                state = self.dictionary.state
            if self.training:
                self.dictionary.observe(k, v, mask)
        y, state = ovq_attention(
            q,
            k,
            v,
            self.log_beta.exp(),
            self.options,
            mask=mask,
            initial_state=state,
            output_final_state=return_state,
            implementation=self.implementation,
        )
        return self.out(y.flatten(2)), state

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of a sequence's dictionary and of its open chunk, which is all that depends on `tokens`."""
        size = self.head_dim
        state = DictionaryState.empty(
            1, self.heads, self.options.capacity, size, size, self.qkv.weight.dtype, device="meta"
        )
        pending = tokens % self.options.chunk_size
        return state.nbytes + pending * (2 * self.heads * size * state.keys.element_size() + 1)

    def extra_repr(self) -> str:
        """Describe the layer in its printed form."""
        return f"heads={self.heads}, head_dim={self.head_dim}, {self.options}"


def operator_options(dictionary: DictionaryConfig) -> DictionaryOptions:
    """Return the operator's part of a dictionary's configuration."""
    return DictionaryOptions(
        capacity=dictionary.capacity,
        chunk_size=dictionary.chunk_size,
        growth=dictionary.growth,
        growth_rate=dictionary.growth_rate,
        concentration=dictionary.concentration,
        novelty_threshold=dictionary.novelty_threshold,
        seeds=dictionary.seeds,
        assignment=dictionary.assignment,
        learning_rate=dictionary.learning_rate,
        rate=dictionary.rate,
        read_out=dictionary.read_out,
    )


@MIXERS.enter("ovq", "online vector-quantized attention (Alonso et al. 2026): dictionary learned in the forward pass")
def _build(model: ModelConfig, dictionary: DictionaryConfig) -> OVQAttention:
    return OVQAttention(
        width=model.width,
        heads=model.heads,
        options=operator_options(dictionary),
        persistent=dictionary.scope != "sequence",
        implementation=model.implementation,
    )
