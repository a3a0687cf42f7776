"""Residual networks for small images, as the continual-learning literature has them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.models.base import MODELS, ModelContext
from cl_ovq.options import NoOptions


class BatchNorm(nn.BatchNorm2d):
    """Batch norm; of a single sample of a single pixel, which has no variance, by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`."""
        if self.training and x.numel() == x.shape[1]:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3, each with batch norm, beside a shortcut (He et al. 2016, "basic block").

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution.
        projected: whether a shortcut between unlike shapes is a convolution of 1 x 1 with batch norm (the paper's B),
            or takes every other pixel and fills channels up with zeros, without a parameter (A).
    """

    def __init__(self, *, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = BatchNorm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = BatchNorm(outputs)
        self.stride = stride
        self.missing = outputs - inputs
        self.projection: nn.Module | None = None
        if projected and (stride > 1 or self.missing):
            self.projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(x)
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))


class ResNet(nn.Module):
    """A convolution of 3 x 3 without pooling, stages of residual blocks, the mean over pixels, and a linear head.

    Args:
        channels: of an image, of any size.
        n_classes: outputs of the head.
        widths: channels of each stage; every one but the first halves height and width.
        blocks: residual blocks of each stage.
        projected: see `ResidualBlock`.
    """

    def __init__(self, *, channels: int, n_classes: int, widths: Sequence[int], blocks: int, projected: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), BatchNorm(widths[0]), nn.ReLU()
        )
        inputs, stages = widths[0], []
        for number, outputs in enumerate(widths):
            for place in range(blocks):
                stride = 2 if number and not place else 1
                stages.append(ResidualBlock(inputs=inputs, outputs=outputs, stride=stride, projected=projected))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head: nn.Module = nn.Linear(inputs, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, H, W]` to features `[B, widths[-1]]`."""
        return self.stages(self.stem(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, H, W]` to logits `[B, n_classes]`."""
        return self.head(self.features(x))


@MODELS.enter(
    "resnet18",
    "ResNet-18 for small images: 3 x 3 stem, no pooling, 64 to 512 channels (11.2 million weights)",
    reads="images",
)
def build_resnet18(options: NoOptions, context: ModelContext) -> nn.Module:
    """Build ResNet-18 as DER (Buzzega et al. 2020) and many after it have it."""
    channels, classes = context.image_shape[0], context.stream.n_classes
    return ResNet(channels=channels, n_classes=classes, widths=(64, 128, 256, 512), blocks=2, projected=True)


@MODELS.enter(
    "resnet32",
    "ResNet-32 for CIFAR (He et al. 2016, section 4.2): 16 to 64 channels, parameter-free shortcuts (0.46 "
    "million weights)",
    reads="images",
)
def build_resnet32(options: NoOptions, context: ModelContext) -> nn.Module:
    """Build ResNet-32 as iCaRL (Rebuffi et al. 2017) and many after it have it."""
    channels, classes = context.image_shape[0], context.stream.n_classes
    return ResNet(channels=channels, n_classes=classes, widths=(16, 32, 64), blocks=5, projected=False)
