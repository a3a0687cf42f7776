"""Augmentations of images by name, with their options: what a training batch is changed by, each sample anew.

A transform maps images `[B, C, H, W]` in [0, 1] to as many of the same shape. It draws from PyTorch's global generator,
which is that of augmentation alone while it runs (`cl_ovq.training.augmentation`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_ovq.errors import UserError
from cl_ovq.options import option
from cl_ovq.registry import Part, Registry

if TYPE_CHECKING:
    from torch import Tensor

Transform = Callable[["Tensor"], "Tensor"]
# Given the options, and channels, height and width of an image.
AugmentationBuilder = Callable[[Any, tuple[int, int, int]], Transform]

AUGMENTATIONS: Registry[Part[AugmentationBuilder]] = Registry("augmentation", Part)


def each(transform: Transform) -> Transform:
    """Return a transform of single images `[C, H, W]` as one of batches: torchvision's draw once for what they get."""

    def over_batch(images: Tensor) -> Tensor:
        import torch

        return torch.stack([transform(image) for image in images])

    return over_batch


@dataclass
class CropOptions:
    """How far a crop may be off."""

    padding: int = option(4, "zero padding in pixels before the crop", minimum=1, maximum=4096)


@AUGMENTATIONS.enter(
    "crop", "pads the image with zeros and takes a random crop of the original size", options=CropOptions
)
def build_crop(options: CropOptions, shape: tuple[int, int, int]) -> Transform:
    """Build random crops."""
    import torch
    from torch.nn import functional

    _, height, width = shape

    def crop(images: Tensor) -> Tensor:
        padded = functional.pad(images, [options.padding] * 4)
        top, left = torch.randint(2 * options.padding + 1, (2, len(images), 1))
        rows = (top + torch.arange(height)).to(images.device)  # [B, H]
        columns = (left + torch.arange(width)).to(images.device)
        samples = torch.arange(len(images), device=images.device)[:, None, None]
        return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return crop


@dataclass
class FlipOptions:
    """How often images are flipped."""

    flip_probability: float = option(0.5, "probability of a flip", exclusive_minimum=0, maximum=1)


@AUGMENTATIONS.enter("flip", "flips images horizontally", options=FlipOptions)
def build_flip(options: FlipOptions, shape: tuple[int, int, int]) -> Transform:
    """Build random flips."""
    import torch

    def flip(images: Tensor) -> Tensor:
        chosen = (torch.rand(len(images)) < options.flip_probability).to(images.device)
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)

    return flip


@dataclass
class ColorOptions:
    """How far colours may change."""

    brightness: float = option(
        0.25, "brightness is multiplied by a random factor in 1 plus or minus this value", minimum=0
    )
    contrast: float = option(0.0, "contrast is multiplied by a random factor in 1 plus or minus this value", minimum=0)
    saturation: float = option(
        0.0, "saturation is multiplied by a random factor in 1 plus or minus this value (colour images)", minimum=0
    )
    hue: float = option(
        0.0, "hue is shifted by up to this fraction of the colour circle (colour images)", minimum=0, maximum=0.5
    )


@AUGMENTATIONS.enter(
    "color", "changes brightness, contrast, saturation and hue (torchvision's ColorJitter)", options=ColorOptions
)
def build_color(options: ColorOptions, shape: tuple[int, int, int]) -> Transform:
    """Build random changes of colour.

    Raises:
        UserError: there is nothing to change.
    """
    _check_channels("color", shape)
    if shape[0] == 1:
        for key in ("saturation", "hue"):
            if getattr(options, key):
                raise UserError(f"training.{key}: has no effect: the stream's images have one channel: remove it")
    if not any((options.brightness, options.contrast, options.saturation, options.hue)):
        raise UserError("training.augmentation: color has no effect: its options are all 0: remove it")
    from torchvision.transforms import v2

    return each(v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue))


@dataclass
class RandAugmentOptions:
    """How much RandAugment does."""

    operations: int = option(2, "operations per image (N in the paper)", minimum=1, maximum=100)
    magnitude: int = option(9, "magnitude of the operations (M in the paper), on a scale of 31", minimum=0, maximum=30)


@AUGMENTATIONS.enter(
    "randaugment",
    "random operations from a list, at one magnitude (Cubuk et al. 2020; torchvision's version)",
    options=RandAugmentOptions,
)
def build_randaugment(options: RandAugmentOptions, shape: tuple[int, int, int]) -> Transform:
    """Build RandAugment."""
    _check_channels("randaugment", shape)
    from torchvision.transforms import v2

    return each(v2.RandAugment(num_ops=options.operations, magnitude=options.magnitude))


def _check_channels(name: str, shape: tuple[int, int, int]) -> None:
    if shape[0] not in (1, 3):
        raise UserError(
            f"training.augmentation: {name} requires images with 1 or 3 channels, but the stream's have {shape[0]}: "
            "use crop and flip"
        )
