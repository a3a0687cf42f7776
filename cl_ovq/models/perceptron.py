"""A multilayer perceptron on pixels: the network of most published class-incremental baselines."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn


class Perceptron(nn.Module):
    """Fully connected layers with ReLU, and a head.

    Args:
        image_shape: channels, height and width of an image.
        n_classes: outputs of the head.
        width: features of a hidden layer.
        depth: hidden layers.
    """

    def __init__(self, *, image_shape: tuple[int, int, int], n_classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [math.prod(image_shape)] + [width] * depth
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.encoder = nn.Sequential(nn.Flatten(), *layers)
        self.head: nn.Module = nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` to features `[B, width]`."""
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits `[B, n_classes]`."""
        return self.head(self.features(x))
