"""A transformer that reads an image as a sequence of patches and names its class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_ovq.errors import UserError
from cl_ovq.mixers import Mixer
from cl_ovq.models.base import MODELS, ModelContext
from cl_ovq.models.block import Block, BlockOptions
from cl_ovq.options import WIDEST, option


@dataclass
class PatchTransformerOptions(BlockOptions):
    """The options of a transformer over image patches."""

    patch_size: int = option(
        2, "side length of a square patch in pixels; must divide the image size", minimum=1, maximum=WIDEST
    )


class PatchTransformer(nn.Module):
    """Patches in raster order, learned positions, causal mixers, mean over tokens, linear head.

    Args:
        image_shape: channels, height and width of an image.
        n_classes: outputs of the head.
        patch_size: side of a square patch in pixels.
        width: features per token (C).
        mixers: the sequence mixer of each block.
        mlp_ratio: hidden features of the MLP in multiples of `width`.
        dropout: share of features dropped after mixer and MLP.

    Raises:
        UserError: `patch_size` does not divide the image's sides.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        n_classes: int,
        patch_size: int,
        width: int,
        mixers: list[Mixer],
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        if height % patch_size or breadth % patch_size:
            sides = [size for size in range(1, min(height, breadth) + 1) if height % size == breadth % size == 0]
            raise UserError(
                f"model.patch_size: {patch_size} does not divide an image of {height} x {breadth} pixels: "
                f"known: {', '.join(map(str, sides))}"
            )
        self.tokens = (height // patch_size) * (breadth // patch_size)
        self.patches = nn.Unfold(patch_size, stride=patch_size)
        self.embedding = nn.Linear(channels * patch_size**2, width)
        # Large enough to count beside the patches from the first step: nothing else tells OVQ where a patch lies.
        self.positions = nn.Parameter(0.5 * torch.randn(self.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width=width, mixer=mixer, hidden=max(1, round(mlp_ratio * width)), dropout=dropout)
            for mixer in mixers
        )
        self.norm = nn.LayerNorm(width)
        self.head: nn.Module = nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` to features `[B, C]`."""
        x = self.embedding(self.patches(x).transpose(1, 2)) + self.positions  # [B, T, C]
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, height, width]` to logits `[B, n_classes]`."""
        return self.head(self.features(x))


@MODELS.enter(
    "patch_transformer",
    "image patches as a causal sequence, with any mixer and mean pooling over tokens",
    options=PatchTransformerOptions,
    reads="images",
)
def build_patch_transformer(options: PatchTransformerOptions, context: ModelContext) -> nn.Module:
    """Build the transformer over image patches."""
    return PatchTransformer(
        image_shape=context.image_shape,
        n_classes=context.stream.n_classes,
        patch_size=options.patch_size,
        width=options.width,
        mixers=context.mixers(options),
        mlp_ratio=options.mlp_ratio,
        dropout=options.dropout,
    )
