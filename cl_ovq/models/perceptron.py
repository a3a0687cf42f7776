"""A multilayer perceptron on pixels or features: the network of most published class-incremental baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from cl_ovq.models.base import MODELS, ModelContext
from cl_ovq.options import WIDEST, option


class Perceptron(nn.Module):
    """Fully connected layers with ReLU, and a head.

    Args:
        sample_shape: channels, height and width of an image, or the features of a vector.
        n_classes: outputs of the head.
        width: features of a hidden layer.
        depth: hidden layers.
    """

    def __init__(self, *, sample_shape: tuple[int, ...], n_classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [math.prod(sample_shape)] + [width] * depth
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.encoder = nn.Sequential(nn.Flatten(), *layers)
        self.head: nn.Module = nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` or vectors `[B, F]` to features `[B, width]`."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits `[B, n_classes]`."""
        return self.head(self.features(x))


@dataclass
class PerceptronOptions:
    """The size of a multilayer perceptron."""

    width: int = option(64, "units per hidden layer", minimum=1, maximum=WIDEST)
    depth: int = option(2, "number of hidden layers", minimum=1, maximum=10_000)


@MODELS.enter(
    "mlp",
    "multilayer perceptron on pixels or features: `depth` layers of `width` units",
    options=PerceptronOptions,
    reads=("images", "vectors"),
)
def build_perceptron(options: PerceptronOptions, context: ModelContext) -> nn.Module:
    """Build the multilayer perceptron."""
    shape, classes = context.sample_shape, context.stream.n_classes
    return Perceptron(sample_shape=shape, n_classes=classes, width=options.width, depth=options.depth)
