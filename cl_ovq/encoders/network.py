"""An encoder as a module: from images or texts to a vector of features each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from cl_ovq.encoders.preprocessing import Preprocess, Preprocessing
from cl_ovq.errors import UserError, nearest

HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class EncoderNetwork(nn.Module):
    """Preprocessing, a network, and what makes one vector of its output.

    Args:
        backbone: maps preprocessed images to features, maps `[B, C, H, W]` or tokens `[B, T, C]`.
        preprocessing: of images in 0 to 1.
        layer: module of the backbone whose output is taken, and after which nothing is computed; the backbone's own
            output if None.
        pool: `mean`, `first` or `flatten`.
        precision: `float32`, or what is computed with where that is possible.

    Attributes:
        still: names of the modules that compute in evaluation mode in any mode: at first the whole.

    Raises:
        UserError: there is no such module.
    """

    def __init__(
        self, backbone: nn.Module, preprocessing: Preprocessing, *, layer: str | None, pool: str, precision: str
    ) -> None:
        super().__init__()
        self.preprocess = Preprocess(preprocessing)
        self.backbone = backbone
        self.pool = pool
        self.precision = precision
        self.still: tuple[str, ...] = ("",)
        if layer is not None:
            named_module(backbone, layer, "encoder.layer").register_forward_hook(_stop)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` in 0 to 1 to features `[B, F]`, float32."""
        x = self.preprocess(images)
        with torch.autocast(x.device.type, HALF.get(self.precision), enabled=self.precision in HALF):
            try:
                output = self.backbone(x)
            except _Reached as reached:
                output = reached.output
        return self._pooled(_tensor(output).float())

    def train(self, mode: bool = True) -> EncoderNetwork:
        """Set the mode of what is not still."""
        super().train(mode)
        for name in self.still:
            for module in self.get_submodule(name).modules():
                module.training = False
        return self

    def _pooled(self, x: Tensor) -> Tensor:
        if x.ndim == 2 or self.pool == "flatten":
            return x.flatten(1)
        if map_like := x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if x.ndim != 3:
            raise UserError(f"encoder.layer: its output {list(x.shape)} is neither a vector nor a map nor tokens")
        return x[:, 0] if self.pool == "first" and not map_like else x.mean(1)


class TextEncoderNetwork(nn.Module):
    """An encoder of texts, which stays in evaluation mode.

    Args:
        backbone: maps a list of strings to features `[B, F]`; it may have a method `truncation`, see there.
        precision: `float32`, or what is computed with where that is possible.
    """

    place: Tensor

    def __init__(self, backbone: nn.Module, *, precision: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.precision = precision
        self.register_buffer("place", torch.empty(0), persistent=False)  # is where features go: texts are nowhere

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Map texts to features `[B, F]`, float32."""
        device = self.place.device
        with torch.autocast(device.type, HALF.get(self.precision), enabled=self.precision in HALF):
            output = self.backbone(list(texts))
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(texts):
            found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"encoder.name: of {len(texts)} texts it returns {found}, but must return [texts, features]"
            )
        return output.to(device, torch.float32)

    def truncation(self, texts: Sequence[str]) -> dict[str, int]:
        """Return how much of a text is read, and of how many of these texts the rest is not; nothing if all is."""
        find = getattr(self.backbone, "truncation", None)
        return {} if find is None else find(list(texts))

    def train(self, mode: bool = True) -> TextEncoderNetwork:
        """Stay in evaluation mode."""
        super().train(False)
        return self


AnyEncoderNetwork = EncoderNetwork | TextEncoderNetwork


class _Reached(Exception):
    """Carries the output of the layer that features are taken from past what would be computed after it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(module: nn.Module, inputs: Any, output: Any) -> NoReturn:
    raise _Reached(output)


def _tensor(output: Any) -> Tensor:
    """Return the tensor that a network's output is, or begins with."""
    found = getattr(output, "last_hidden_state", output)
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise UserError(f"encoder.layer: its output is a {type(output).__name__}, but must be a tensor")
    return found


def named_module(network: nn.Module, name: str, key: str) -> nn.Module:
    """Return a module by its name.

    Raises:
        UserError: there is none: naming the nearest, and those at the top.
    """
    modules = dict(network.named_modules())
    if name not in modules or not name:
        known = ", ".join(child for child, _ in network.named_children())
        raise UserError(f"{key}: there is no '{name}'{nearest(name, filter(None, modules)) or ':'} known: {known}")
    return modules[name]


def last_linear(network: nn.Module) -> str | None:
    """Return the name of a network's last linear layer, which is the classifier of most; None where it has none."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def without(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a network whose modules of these names pass on what they are given."""
    for name in names:
        network.set_submodule(name, nn.Identity())
    return network


class EncodedModel(nn.Module):
    """A model with the frozen encoder whose features it was trained on: it reads images, or texts.

    Args:
        encoder: of images or texts.
        model: of features, and of task labels where it takes them.
    """

    def __init__(self, encoder: AnyEncoderNetwork, model: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.model = model

    def forward(self, inputs: Any, *task_labels: Any) -> Tensor:
        """Map images `[B, channels, height, width]` in 0 to 1, or a list of texts, to logits `[B, n_classes]`."""
        with torch.no_grad():
            features = self.encoder(inputs)
        if self.encoder.precision in HALF:
            features = features.half().float()  # as they were kept
        return self.model(features, *task_labels)
