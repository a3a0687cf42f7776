"""What every sequence mixer offers, and the registry of mixers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cl_ovq.config.schema import DictionaryConfig, ModelConfig
from cl_ovq.registry import Registry


class Mixer(nn.Module, ABC):
    """A causal sequence mixer: token t sees tokens up to and including t.

    Shapes: `B` sequences, `T` tokens, `C` features.
    """

    @abstractmethod
    def forward(self, x: Tensor, *, mask: Tensor | None = None, state: Any = None, return_state: bool = False) -> Any:
        """Mix tokens.

        Args:
            x: `[B, T, C]`.
            mask: `[B, T]`, true for tokens; others are neither read nor remembered.
            state: what an earlier call returned, to continue its sequences.
            return_state: whether to return the state after the last token.

        Returns:
            `(y, state)`: `y` is `[B, T, C]`, `state` is None unless `return_state`.
        """

    @abstractmethod
    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of one sequence's state after so many tokens."""


MixerBuilder = Callable[[ModelConfig, DictionaryConfig], Mixer]

MIXERS: Registry[MixerBuilder] = Registry("mixer")
