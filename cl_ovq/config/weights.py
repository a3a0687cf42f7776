"""The checksum of an encoder's weights in a configuration: with other weights in the same file it is another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.config.schema import ExperimentConfig
from cl_ovq.encoders import encoder_of
from cl_ovq.encoders.frozen import features_root, known_sha256

Layers = Sequence[Mapping[str, Any]]
NAMING = ("name", "model", "weights")  # keys that say which weights are meant


def with_checksum(config: ExperimentConfig) -> ExperimentConfig:
    """Return a configuration with the checksum of its encoder's weights filled in, where they are on this machine."""
    encoder = encoder_of(config.encoder)
    if encoder is not None and encoder.sha256 is None:
        encoder.sha256 = known_sha256(config.encoder.name, encoder, features_root(encoder))
    return config


def without_checksum(layers: Layers) -> Layers:
    """Return the layers of a configuration without the checksum of weights where a layer above it names others."""
    kept: list[Mapping[str, Any]] = []
    for layer in layers:
        given = layer.get("encoder")
        if isinstance(given, Mapping) and given.keys() & set(NAMING):
            kept = [_without(below) for below in kept]
        kept.append(layer)
    return kept


def _without(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    given = tree.get("encoder")
    if not isinstance(given, Mapping):
        return tree
    return {**tree, "encoder": {key: value for key, value in given.items() if key != "sha256"}}
