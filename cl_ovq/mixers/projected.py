"""What mixers of multi-head form share: projection in, short convolution, masking, projection out, and the state."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_ovq.mixers.base import Mixer
from cl_ovq.mixers.convolution import ShortConvolution

Memory = tuple[Tensor, ...]


class ProjectedState(NamedTuple):
    """What a projected mixer needs to go on with its sequences.

    Attributes:
        memory: the mixer's own.
        past: the last inputs of the short convolution, `[B, size - 1, F]`; None without one.
    """

    memory: Memory
    past: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.memory) + (0 if self.past is None else self.past.nbytes)


class ProjectedMixer(Mixer):
    """A mixer that projects tokens to features, convolves them, mixes them, and projects back.

    Args:
        width: features per token (C).
        features: features that are convolved and mixed (F): queries, keys, values.
        output: features of what is mixed, before the projection back.
        convolution: tokens that a short causal convolution of the features sees; 0 for none.
    """

    EXACT = False  # whether `mix` computes in no type but its own choice, also under autocast: sums over many tokens

    def __init__(self, *, width: int, features: int, output: int, convolution: int = 0) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, features, bias=False)
        self.convolution = ShortConvolution(features, convolution) if convolution else None
        self.out = nn.Linear(output, width, bias=False)

    @abstractmethod
    def mix(self, features: Tensor, x: Tensor, mask: Tensor | None, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Mix projected tokens.

        Args:
            features: `[B, T, F]`, convolved.
            x: `[B, T, C]`, what they were projected from, zero where masked; for gates.
            mask: `[B, T]`, true for tokens; None if all are.
            memory: what an earlier call returned.

        Returns:
            `[B, T, output]`, which at masked tokens may be anything finite, and the memory after the last token.
        """

    @abstractmethod
    def memory_bytes(self, tokens: int) -> int:
        """Return the bytes of one sequence's memory after so many tokens."""

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        state: ProjectedState | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, ProjectedState | None]:
        """Mix tokens; see `Mixer.forward`. The state is a `ProjectedState`."""
        memory, past = (None, None) if state is None else state
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)  # before weights and gates: what a masked token holds may be NaN
        features = self.qkv(x)
        if self.convolution is not None:
            features, past = self.convolution(features, past)
        with torch.autocast(x.device.type, enabled=False) if self.EXACT else nullcontext():
            y, memory = self.mix(features, x, mask, memory)
        y = self.out(y)
        if mask is not None:
            y = y.masked_fill(~mask[..., None], 0.0)
        return y, ProjectedState(memory, past) if return_state else None

    def queries_and_keys(self) -> tuple[slice, slice]:
        """Return which of the projected features are queries, and which are keys."""
        third = self.qkv.out_features // 3
        return slice(third), slice(third, 2 * third)

    @torch.no_grad()
    def start_queries_as_keys(self) -> None:
        """Give queries the weights of keys; see `Mixer.start_queries_as_keys`."""
        queries, keys = self.queries_and_keys()
        self.qkv.weight[queries] = self.qkv.weight[keys]

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of one sequence's state after so many tokens."""
        size = 0 if self.convolution is None else self.convolution.size - 1
        return self.memory_bytes(tokens) + size * self.qkv.out_features * self.qkv.weight.element_size()
