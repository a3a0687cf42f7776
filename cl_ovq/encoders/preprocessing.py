"""From images as a stream has them to what weights were trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.encoders.base import EncoderOptions
from cl_ovq.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What weights expect.

    Attributes:
        size: height and width of an image; None for any.
        mean: of each channel, subtracted from values in 0 to 1; empty for none.
        std: of each channel, divided by.
        interpolation: how images are resized: `bilinear`, `bicubic` or `nearest`.
        crop: share of each side that the weights' own evaluation keeps, after resizing.
    """

    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    crop: float = 1.0

    @classmethod
    def of(cls, facts: dict[str, Any], options: EncoderOptions) -> Preprocessing:
        """Return what was found with a part, and what the options say in its place.

        Raises:
            UserError: there is nothing that `normalize` would leave out.
        """
        found = cls(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})
        size = options.size or found.size
        crop = found.crop if options.crop is None else options.crop
        mean, std = found.mean, found.std
        if not options.normalize:
            if not mean:
                raise UserError("encoder.normalize: these weights have no mean and standard deviation: remove it")
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        return cls(size, mean, std, found.interpolation, crop)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Preprocess(nn.Module):
    """Resizes images, keeps their middle, and standardises their channels.

    Images that are no squares are resized by their shorter side.

    Args:
        options: what to do.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, options: Preprocessing) -> None:
        super().__init__()
        self.options = options
        for name in ("mean", "std"):
            values = torch.tensor(getattr(options, name), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` in 0 to 1 to `[B, C, size, size]`."""
        wanted = len(self.mean)
        if wanted == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        images = self._resized(images)
        return (images - self.mean) / self.std if wanted else images

    def _resized(self, images: Tensor) -> Tensor:
        size, how = self.options.size, self.options.interpolation
        if size is None:
            return images
        height, width = images.shape[2:]
        shorter, target = min(height, width), round(size / self.options.crop)
        shape = (target * height // shorter, target * width // shorter)
        if shape != (height, width):
            smooth = how != "nearest"
            images = functional.interpolate(
                images, shape, mode=how, antialias=smooth, align_corners=False if smooth else None
            ).clamp(0, 1)  # bicubic ones go beyond
        top, left = round((shape[0] - size) / 2), round((shape[1] - size) / 2)  # as torchvision's CenterCrop
        return images[:, :, top : top + size, left : left + size]


def check_channels(channels: int, options: Preprocessing) -> None:
    """Refuse images whose channels the weights do not expect: grey ones become three equal channels.

    Raises:
        UserError: they have others.
    """
    wanted = len(options.mean)
    if wanted and channels != wanted and (channels, wanted) != (1, 3):
        raise UserError(
            f"encoder.name: its weights need images with {wanted} channels, but the stream's have {channels}: "
            "set stream.channels=3"
        )
