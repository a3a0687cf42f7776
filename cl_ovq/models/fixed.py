"""Models whose features are not learned: the samples themselves, or random functions of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.models.base import MODELS, ModelContext
from cl_ovq.options import WIDEST, NoOptions, option

POOLED = 4  # cells along each side after pooling
AT_ONCE = (
    64  # images whose responses to filters are held together: larger blocks take fresh pages, and three times as long
)


class FixedFeatureModel(nn.Module):
    """Fixed features and a head.

    Args:
        features: maps images `[B, channels, height, width]`, or vectors, to features `[B, F]`, without parameters.
        sample_shape: channels, height and width of an image, or the features of a vector.
        n_classes: outputs of the head.
    """

    def __init__(self, features: nn.Module, *, sample_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.features = features
        size = features(torch.zeros(1, *sample_shape)).shape[1]
        self.head: nn.Module = nn.Linear(size, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits `[B, n_classes]`."""
        return self.head(self.features(x))


class RandomFeatures(nn.Module):
    """Random features `GELU(W x + b)` (Rahimi and Recht 2008) of pixels centred at one half.

    W and b are drawn with a model's weights, and so follow from the run's seed.

    Args:
        pixels: of an image, of all channels, or the features of a vector.
        features: F.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, *, pixels: int, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(features, pixels) * (2 / math.sqrt(pixels)))
        self.register_buffer("bias", torch.randn(features))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]`, or vectors, to `[B, F]`."""
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
        return torch.cat([self._pooled(part) for part in x.split(AT_ONCE)])

    def _pooled(self, x: Tensor) -> Tensor:
        responses = functional.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2).abs_()
        return functional.adaptive_avg_pool2d(responses, POOLED).flatten(1)


@dataclass
class RandomFeatureOptions:
    """How many random features there are."""

    width: int = option(64, "number of random features", minimum=1, maximum=WIDEST)


@dataclass
class RandomConvolutionOptions:
    """How many random filters there are."""

    width: int = option(64, "number of random filters; each gives 16 features", minimum=1, maximum=WIDEST)


@MODELS.enter(
    "pixels",
    "the pixels or vector as features: no learning before the head",
    reads=("images", "vectors"),
)
def build_pixels(options: NoOptions, context: ModelContext) -> nn.Module:
    """Build the model of plain pixels."""
    return FixedFeatureModel(nn.Flatten(), sample_shape=context.sample_shape, n_classes=context.stream.n_classes)


@MODELS.enter(
    "random_features",
    "fixed random features of all pixels or inputs (Rahimi and Recht 2008): `width` features",
    options=RandomFeatureOptions,
    reads=("images", "vectors"),
)
def build_random_features(options: RandomFeatureOptions, context: ModelContext) -> nn.Module:
    """Build the model of random features."""
    shape = context.sample_shape
    features = RandomFeatures(pixels=math.prod(shape), features=options.width)
    return FixedFeatureModel(features, sample_shape=shape, n_classes=context.stream.n_classes)


@MODELS.enter(
    "random_convolution",
    "fixed random convolution filters, pooled over 4 x 4 cells: `width` filters, 16 times as many features",
    options=RandomConvolutionOptions,
    reads="images",
)
def build_random_convolution(options: RandomConvolutionOptions, context: ModelContext) -> nn.Module:
    """Build the model of random filters."""
    shape = context.image_shape
    features = RandomConvolution(channels=shape[0], filters=options.width)
    return FixedFeatureModel(features, sample_shape=shape, n_classes=context.stream.n_classes)
