"""A small convolution network for glyphs of 16 x 16, as a model (`glyph_encoder.yaml`) and as an encoder."""

from torch import Tensor, nn

from cl_ovq.models import MODELS

CHARACTERS = 2400  # that `glyph_encoder.yaml` learns
FEATURES = 64


class GlyphNetwork(nn.Module):
    """Two convolutions with pooling, a layer of 64 features, and a linear head."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 16, FEATURES), nn.BatchNorm1d(FEATURES)),
        )
        self.head: nn.Module = nn.Linear(FEATURES, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images `[B, channels, 16, 16]` to features `[B, 64]`."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits `[B, n_classes]`."""
        return self.head(self.features(x))


def encoder() -> GlyphNetwork:
    """Make the network for `encoder.model=./glyph_network.py:encoder` with `encoder.layer=body`."""
    return GlyphNetwork(1, CHARACTERS)


@MODELS.enter("glyph_network", "two convolutions and 64 features, for glyphs of 16 x 16", reads="images")
def build_glyph_network(options, context):  # type: ignore[no-untyped-def]
    """Build the model."""
    return GlyphNetwork(context.image_shape[0], context.stream.n_classes)
