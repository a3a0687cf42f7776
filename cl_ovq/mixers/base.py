"""What every sequence mixer offers, and the registry of mixers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cl_ovq.config.schema import DictionaryConfig, ModelConfig
from cl_ovq.registry import Registry


class Mixer(nn.Module, ABC):
    """A causal sequence mixer: token t sees tokens up to and including t.

    Shapes: `B` sequences, `T` tokens, `C` features.

    Attributes:
        losses: where a forward pass leaves what it adds to the training loss, while `auxiliary_losses` collects it.
        sharpness: factor of the inverse temperature of attention over all tokens; mixers without such do not read it.
    """

    losses: list[Tensor] | None = None
    sharpness: float = 1.0

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


@contextmanager
def auxiliary_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the mixers of a model add to the loss in the forward passes of a `with` block (scalars)."""
    losses: list[Tensor] = []
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    for mixer in mixers:
        mixer.losses = losses
    try:
        yield losses
    finally:
        for mixer in mixers:
            mixer.losses = None  # a copy of the model must hold no part of a graph


@contextmanager
def sharpened(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the inverse temperature of attention over all tokens, in all layers, in a `with` block."""
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    for mixer in mixers:
        mixer.sharpness = factor
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.sharpness = 1.0


def layer_mixers(model: ModelConfig) -> list[str]:
    """Return the name of the mixer of each layer: the pattern over and over, or one mixer everywhere."""
    pattern = model.pattern or [model.mixer]
    return [pattern[layer % len(pattern)] for layer in range(model.depth)]


def build_mixers(model: ModelConfig, dictionary: DictionaryConfig) -> list[Mixer]:
    """Return the mixer of each layer.

    Raises:
        UserError: an unknown mixer, or one whose library is not installed.
    """
    return [MIXERS[name](model, dictionary) for name in layer_mixers(model)]
