"""What every sequence mixer offers, and the registry of mixers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_ovq.errors import called, check_built
from cl_ovq.mixers.state import tensors_of
from cl_ovq.options import WIDEST, option
from cl_ovq.registry import Part, Registry
from kernels.state import statistics_dtype


class Mixer(nn.Module, ABC):
    """A causal sequence mixer: token t sees tokens up to and including t.

    Shapes: `B` sequences, `T` tokens, `C` features.

    Attributes:
        losses: where a forward pass leaves what it adds to the training loss, while `auxiliary_losses` collects it.
        sharpness: factor of the inverse temperature of attention over all tokens; mixers without such do not read it.
        options: what it was made from.
    """

    losses: list[Tensor] | None = None
    sharpness: float = 1.0

    def __init__(self, options: MixerOptions | None = None) -> None:
        super().__init__()
        self.options: Any = options

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

    def start_queries_as_keys(self) -> None:
        """Give queries the weights of keys, from which they then part: a token first finds those that are like it.

        A mixer without queries and keys stays as it is.
        """

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of one sequence's state after so many tokens.

        They are found by reading so many zeros; a mixer that knows them overrides this.
        """
        like = next(self.parameters(), torch.empty(0))
        with torch.no_grad():
            _, state = self(like.new_zeros(1, tokens, self.options.width), return_state=True)
        return sum(tensor.nbytes for tensor in tensors_of(state))


@dataclass
class MixerOptions:
    """What every mixer has."""

    width: int = option(64, "features per token", minimum=1, maximum=WIDEST)


@dataclass
class AttentionOptions(MixerOptions):
    """What every mixer of queries, keys and values has."""

    heads: int = option(4, "attention heads; must divide width", minimum=1, maximum=WIDEST)
    convolution: int = option(
        0,
        "width in tokens of a short causal convolution of queries, keys and values; 0 for none",
        minimum=0,
        maximum=WIDEST,
    )


# Given the mixer's options, and those of each section that it opens.
MixerBuilder = Callable[..., Mixer]


@dataclass(frozen=True, kw_only=True)
class MixerPart(Part[MixerBuilder]):
    """A mixer of the registry.

    Attributes:
        rotary: whether it rotates queries and keys, given its options; heads must then be of even size.
        has_dictionary: whether it learns a dictionary that can be resized, and shared by sequences.
        sharpens: whether it reads `Mixer.sharpness`, as attention over all tokens does.
    """

    rotary: Callable[[Any], bool] = lambda options: False
    has_dictionary: bool = False
    sharpens: bool = False


MIXERS: Registry[MixerPart] = Registry("mixer", MixerPart)


@dataclass
class StackOptions(MixerOptions):
    """A stack of layers with a mixer each."""

    mixer: str = option("ovq", "sequence mixer of every layer: a name from `cl-ovq list mixers`", parts=MIXERS)
    pattern: list[str] | None = option(  # noqa: RUF009 - option makes a field
        None,
        "mixers of successive layers, repeated over the depth; replaces `mixer`. Example: [sliding_window, ovq]",
        parts=MIXERS,
        replaces="mixer",
    )
    depth: int = option(2, "number of layers", minimum=1, maximum=10_000)


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


def is_recomputed() -> bool:
    """Whether a pass is made within a backward pass: it is an earlier one, which activation checkpointing repeats."""
    return torch._C._current_graph_task_id() != -1


def statistics(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `fn` makes of a buffer of statistics, in a type that holds them: fp32, or fp64 where it makes that.

    Args:
        tensor: means, sums or counts.
        fn: what `nn.Module._apply` is given, which moves or casts.
    """
    moved = fn(tensor)
    dtype = statistics_dtype(moved.dtype) if tensor.is_floating_point() else tensor.dtype
    return moved if moved.dtype == dtype else tensor.to(moved.device, dtype)


def layer_mixers(model: object) -> list[str]:
    """Return the name of the mixer of each layer: the pattern over and over, or one mixer everywhere.

    Args:
        model: the section `model`; one without mixers has no such layers.
    """
    if not isinstance(model, StackOptions):
        return []
    pattern = model.pattern or [model.mixer]
    return [pattern[layer % len(pattern)] for layer in range(model.depth)]


def build_mixers(model: StackOptions, dictionary: Any = None) -> list[Mixer]:
    """Return the mixer of each layer.

    Args:
        model: the options of all mixers.
        dictionary: the section `dictionary`, for the mixers that have one.

    Raises:
        UserError: an unknown mixer, one whose library is not installed, or a builder of something else.
    """
    made = []
    for name in layer_mixers(model):
        part = MIXERS[name]
        made.append(called(f"mixer '{name}'", part.build, model, *([dictionary] if part.sections else [])))
        check_built(f"mixer '{name}'", made[-1], Mixer, "a cl_ovq.mixers.Mixer")
        if made[-1].options is None:
            made[-1].options = model
    return made
