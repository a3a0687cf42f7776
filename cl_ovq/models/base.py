"""The registries of models and of heads, and what a model's builder is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from cl_ovq.mixers import Mixer, StackOptions, build_mixers
from cl_ovq.registry import Part, Registry
from streams.samples import named_inputs

if TYPE_CHECKING:
    from streams import Stream, TensorSamples


@dataclass(frozen=True)
class ModelContext:
    """What a model is built from beside its options.

    Attributes:
        stream: what will be learned.
        dictionary: the section `dictionary`, which some mixers have; None where there is none.
        features: how many there are, where an encoder that is trained makes some of the stream's images.
    """

    stream: Stream
    dictionary: Any = None
    features: int | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width of the stream's images, or the features of its vectors."""
        if self.features is not None:
            return (self.features,)
        return cast("TensorSamples", self.stream.samples).sample_shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the stream's images, for a model that reads only images."""
        channels, height, width = self.sample_shape
        return channels, height, width

    def mixers(self, options: StackOptions) -> list[Mixer]:
        """Return the mixer of each layer, made anew."""
        return build_mixers(options, self.dictionary)


INPUTS = ("images", "vectors", "sequences")
ModelBuilder = Callable[[Any, ModelContext], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Model(Part[ModelBuilder]):
    """A model of the registry.

    Attributes:
        reads: what it reads, one or several of `INPUTS`; None for all of them.
    """

    reads: str | tuple[str, ...] | None = None

    def takes(self, inputs: str) -> bool:
        """Return whether it reads inputs of that kind."""
        return self.reads is None or inputs == self.reads or (isinstance(self.reads, tuple) and inputs in self.reads)


def inputs_of(stream: Stream) -> str:
    """Return what the samples of a stream are, one of `INPUTS`, or `texts`, which no model reads."""
    if stream.kind not in ("classes", "vectors"):
        return "sequences"
    return named_inputs(cast("TensorSamples", stream.samples).sample_shape)


# Puts the head on a network whose `head` is linear; given the section `model`, which has the head's options, the
# network, the stream, and the sections that it opens.
HeadBuilder = Callable[..., None]

MODELS: Registry[Model] = Registry("model", Model)
HEADS: Registry[Part[HeadBuilder]] = Registry("head", Part)


@HEADS.enter("linear", "a linear map of the features, trained by gradient descent")
def build_linear(options: Any, network: nn.Module, stream: Stream) -> None:
    """Leave the linear head that every network has."""
