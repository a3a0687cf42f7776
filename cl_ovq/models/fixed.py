"""Models whose features are not learned: the pixels themselves, or random functions of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

POOLED = 4  # cells along each side after pooling


class FixedFeatureModel(nn.Module):
    """Fixed features and a head.

    Args:
        features: maps images `[B, channels, height, width]` to features `[B, F]`, without parameters.
        image_shape: channels, height and width of an image.
        n_classes: outputs of the head.
    """

    def __init__(self, features: nn.Module, *, image_shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        self.features = features
        size = features(torch.zeros(1, *image_shape)).shape[1]
        self.head: nn.Module = nn.Linear(size, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits `[B, n_classes]`."""
        return self.head(self.features(x))


class RandomFeatures(nn.Module):
    """Random features `GELU(W x + b)` (Rahimi and Recht 2008) of pixels centred at one half.

    W and b are drawn with a model's weights, and so follow from the run's seed.

    Args:
        pixels: pixels of an image, of all channels.
        features: F.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, *, pixels: int, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(features, pixels) * (2 / math.sqrt(pixels)))
        self.register_buffer("bias", torch.randn(features))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` to `[B, F]`."""
        return functional.gelu(functional.linear(2 * x.flatten(1) - 1, self.weight, self.bias))


class RandomConvolution(nn.Module):
    """Absolute responses to random filters of zero mean and length one, averaged over four by four cells.

    Args:
        channels: of an image.
        filters: F / 16.
        size: side of a filter in pixels.
    """

    weight: Tensor

    def __init__(self, *, channels: int, filters: int, size: int = 6) -> None:
        super().__init__()
        weight = torch.randn(filters, channels, size, size)
        weight -= weight.mean((1, 2, 3), keepdim=True)
        self.register_buffer("weight", weight / weight.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` to `[B, 16 filters]`."""
        responses = functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2).abs()
        return functional.adaptive_avg_pool2d(responses, POOLED).flatten(1)
