"""Builds the model that a configuration names, for the stream that it will see."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from cl_ovq.config.schema import DictionaryConfig, ModelConfig
from cl_ovq.errors import UserError
from cl_ovq.mixers import MIXERS
from cl_ovq.models.classifier import PatchTransformer
from cl_ovq.registry import Registry

if TYPE_CHECKING:
    from streams import Stream

MODELS: Registry[Callable[[ModelConfig, DictionaryConfig, Stream], nn.Module]] = Registry("model")


@MODELS.enter("patch_transformer", "image patches as a causal sequence, any mixer, mean over tokens, linear head")
def _patch_transformer(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    return PatchTransformer(
        image_shape=stream.samples.image_shape,
        n_classes=stream.n_classes,
        patch_size=model.patch_size,
        width=model.width,
        mixers=[MIXERS[model.mixer](model, dictionary) for _ in range(model.depth)],
        mlp_ratio=model.mlp_ratio,
        dropout=model.dropout,
    )


def check_model(model: ModelConfig) -> None:
    """Check what can be checked of a model before its data is loaded.

    Raises:
        UserError: an unknown model or mixer, or a width that the heads do not divide.
    """
    for key, registry, name in (("model.name", MODELS, model.name), ("model.mixer", MIXERS, model.mixer)):
        try:
            registry[name]
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    if model.width % model.heads:
        raise UserError(f"model.heads: {model.heads} heads do not divide model.width={model.width}")
    if model.heads % (model.key_value_heads or model.heads):
        raise UserError(f"model.key_value_heads: {model.key_value_heads} does not divide model.heads={model.heads}")


def build_model(model: ModelConfig, dictionary: DictionaryConfig, stream: Stream) -> nn.Module:
    """Return the configured model; in a task-incremental stream it takes task labels.

    Raises:
        UserError: the configuration does not fit the stream.
    """
    network = MODELS[model.name](model, dictionary, stream)
    if stream.scenario != "task_incremental":
        return network
    from cl_ovq.models.heads import TaskMaskedModel  # Avalanche, which heads need, takes seconds to import

    return TaskMaskedModel(network, stream.classes_per_experience, stream.n_classes)
