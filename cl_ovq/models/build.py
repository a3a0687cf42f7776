"""Builds the model that a configuration names, for the stream that it will see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from cl_ovq.config.schema import DictionaryConfig, ExperimentConfig, MemoryConfig, ModelConfig
from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS, build_mixers, layer_mixers
from cl_ovq.models.classifier import PatchTransformer
from cl_ovq.models.fixed import FixedFeatureModel, RandomConvolution, RandomFeatures
from cl_ovq.models.memory import MemoryHead
from cl_ovq.models.perceptron import Perceptron
from cl_ovq.models.sequence import SequenceModel, matching_hidden
from cl_ovq.registry import Registry

if TYPE_CHECKING:
    from streams import SequenceSamples, Stream, TensorSamples

MODELS: Registry[Callable[[ModelConfig, DictionaryConfig, Stream], nn.Module]] = Registry("model")


@MODELS.enter("patch_transformer", "image patches as a causal sequence, any mixer, mean over tokens")
def _patch_transformer(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    return PatchTransformer(
        image_shape=_image_shape(model, stream),
        n_classes=stream.n_classes,
        patch_size=model.patch_size,
        width=model.width,
        mixers=build_mixers(model, dictionary),
        mlp_ratio=model.mlp_ratio,
        dropout=model.dropout,
    )


@MODELS.enter("mlp", "multilayer perceptron on pixels: depth layers of width features")
def _mlp(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    shape, classes = _image_shape(model, stream), stream.n_classes
    return Perceptron(image_shape=shape, n_classes=classes, width=model.width, depth=model.depth)


@MODELS.enter("pixels", "the pixels as features, nothing learned before the head")
def _pixels(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    return FixedFeatureModel(nn.Flatten(), image_shape=_image_shape(model, stream), n_classes=stream.n_classes)


@MODELS.enter("random_features", "fixed random functions of all pixels (Rahimi and Recht 2008): width features")
def _random_features(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    shape = _image_shape(model, stream)
    features = RandomFeatures(pixels=math.prod(shape), features=model.width)
    return FixedFeatureModel(features, image_shape=shape, n_classes=stream.n_classes)


@MODELS.enter(
    "random_convolution", "fixed random filters, pooled over 4 x 4 cells: width filters, 16 times as many features"
)
def _random_convolution(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    shape = _image_shape(model, stream)
    features = RandomConvolution(channels=shape[0], filters=model.width)
    return FixedFeatureModel(features, image_shape=shape, n_classes=stream.n_classes)


@MODELS.enter("sequence_model", "causal model of sequences, any mixers, an output at every token (sequence streams)")
def _sequence_model(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    if stream.kind == "classes":
        raise UserError(f"model.name: '{model.name}' reads sequences, and '{stream.name}' has images")
    features = cast("SequenceSamples", stream.samples).features
    if model.tied and features is not None:
        raise UserError(f"model.tied: '{stream.name}' has vectors for tokens: a head cannot be their embedding's")

    def build(hidden: int) -> SequenceModel:
        return SequenceModel(
            tokens=stream.n_classes if features is None else None,
            features=features,
            outputs=stream.n_classes,
            width=model.width,
            mixers=build_mixers(model, dictionary),
            hidden=hidden,
            dropout=model.dropout,
            tied=model.tied,
        )

    if model.parameters is None:
        return build(max(1, round(model.mlp_ratio * model.width)))
    return build(matching_hidden(build, model.parameters))


def _image_shape(model: ModelConfig, stream: Stream) -> tuple[int, int, int]:
    """Return the shape of a stream's images.

    Raises:
        UserError: it has sequences.
    """
    if stream.kind != "classes":
        raise UserError(
            f"model.name: '{model.name}' reads images, and '{stream.name}' has sequences: known: sequence_model"
        )
    return cast("TensorSamples", stream.samples).image_shape


# Models that are built of mixers.
MIXED = ("patch_transformer", "sequence_model")


def check_model(model: ModelConfig) -> None:
    """Check what can be checked of a model before its data is loaded.

    Raises:
        UserError: an unknown model or mixer, or a width that the heads do not divide.
    """
    if model.pattern == []:
        raise UserError("model.pattern: is empty: name the mixers of the layers in turn, or null for model.mixer")
    names: list[tuple[str, Registry[Any], str]] = [
        ("model.name", MODELS, model.name),
        ("model.mixer", MIXERS, model.mixer),
        *(("model.pattern", MIXERS, name) for name in model.pattern or ()),
    ]
    for key, registry, name in names:
        try:
            registry[name]
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    if model.width % model.heads:
        raise UserError(f"model.heads: {model.heads} heads do not divide model.width={model.width}")
    if model.width // model.heads % 2:
        mixers = layer_mixers(model)
        if "sliding_window" in mixers or (model.position == "rotary" and "softmax" in mixers):
            raise UserError(
                f"model.heads: rotary positions need heads of even size, and {model.heads} heads of "
                f"model.width={model.width} have {model.width // model.heads} features each"
            )
    if model.heads % (model.key_value_heads or model.heads):
        raise UserError(f"model.key_value_heads: {model.key_value_heads} does not divide model.heads={model.heads}")


def build_model(config: ExperimentConfig, stream: Stream) -> nn.Module:
    """Return the configured model; in a task-incremental stream it takes task labels.

    Raises:
        UserError: the configuration does not fit the stream.
    """
    network = MODELS[config.model.name](config.model, config.dictionary, stream)
    if config.model.train_encoder == "never":
        freeze_encoder(network)
    if config.model.head == "memory":
        if stream.kind != "classes":
            raise UserError(f"model.head: a memory names the class of an image, and '{stream.name}' has sequences")
        _remember(network, config.memory, stream)
    if stream.scenario != "task_incremental":
        return network
    from cl_ovq.models.heads import TaskMaskedModel  # Avalanche, which heads need, takes seconds to import

    return TaskMaskedModel(network, stream.classes_per_experience, stream.n_classes)


def freeze_encoder(model: nn.Module) -> None:
    """Take all weights but the head's out of training."""
    network = getattr(model, "model", model)  # a task-masked model wraps the one that needs no task label
    for name, parameter in network.named_parameters():
        if not name.startswith("head."):
            parameter.requires_grad_(False)
            parameter.grad = None


def _remember(network: nn.Module, memory: MemoryConfig, stream: Stream) -> None:
    """Put a memory in the place of a network's linear head, or beside it where an encoder is to be trained."""
    from cl_ovq.models.heads import RememberingHead

    linear = network.head
    assert isinstance(linear, nn.Linear)
    learns = any(
        parameter.requires_grad for name, parameter in network.named_parameters() if not name.startswith("head.")
    )
    if memory.capacity < stream.n_classes:
        raise UserError(
            f"memory.capacity: {memory.capacity} is too small: it must be at least one slot for each of the "
            f"{stream.n_classes} classes"
        )
    head = MemoryHead(
        features=linear.in_features,
        classes=stream.n_classes,
        capacity=memory.capacity,
        chunk_size=memory.chunk_size,
        growth=memory.growth,
        beta=memory.beta,
        shrinkage=memory.shrinkage,
        class_weight=memory.class_weight,
        confidence=memory.confidence,
        normalise=memory.normalise,
        prior=memory.prior,
        storage=memory.storage,
    )
    network.head = RememberingHead(head, linear if learns else None)
