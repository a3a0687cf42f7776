"""The registries of models and of heads, and what a model's builder is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from cl_ovq.mixers import Mixer, StackOptions, build_mixers
from cl_ovq.registry import Part, Registry

if TYPE_CHECKING:
    from streams import Stream, TensorSamples


@dataclass(frozen=True)
class ModelContext:
    """What a model is built from beside its options.

    Attributes:
        stream: what will be learned.
        dictionary: the section `dictionary`, which some mixers have; None where there is none.
    """

    stream: Stream
    dictionary: Any = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the stream's images."""
        return cast("TensorSamples", self.stream.samples).image_shape

    def mixers(self, options: StackOptions) -> list[Mixer]:
        """Return the mixer of each layer, made anew."""
        return build_mixers(options, self.dictionary)


ModelBuilder = Callable[[Any, ModelContext], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Model(Part[ModelBuilder]):
    """A model of the registry.

    Attributes:
        reads: what it reads, `images` or `sequences`; None for both.
    """

    reads: str | None = None


# Puts the head on a network whose `head` is linear; given the network, the stream, and the sections that it opens.
HeadBuilder = Callable[..., None]

MODELS: Registry[Model] = Registry("model", Model)
HEADS: Registry[Part[HeadBuilder]] = Registry("head", Part)


@HEADS.enter("linear", "a linear map of the features, learned by gradients")
def build_linear(network: nn.Module, stream: Stream) -> None:
    """Leave the linear head that every network has."""
