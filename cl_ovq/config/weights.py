"""Checksums of weights, and of what these are learned on, in a configuration: with another file it is another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.config.schema import ExperimentConfig
from cl_ovq.encoders import encoder_of
from cl_ovq.encoders.frozen import features_root, known_sha256
from cl_ovq.in_context import FromFileOptions
from cl_ovq.in_context import known_sha256 as known_weights

Layers = Sequence[Mapping[str, Any]]
# Keys, of each section that reads weights, that say which ones are meant.
NAMING = {"encoder": {"name", "model", "weights"}, "learner": {"weights", "path", "data"}}


def with_checksum(config: ExperimentConfig) -> ExperimentConfig:
    """Return a configuration with the checksums of weights filled in, where they are on this machine."""
    encoder = encoder_of(config.encoder)
    if encoder is not None and encoder.sha256 is None:
        encoder.sha256 = known_sha256(config.encoder.name, encoder, features_root(encoder))
    learner = config.learner
    if isinstance(learner, FromFileOptions) and learner.sha256 is None:
        learner.sha256 = known_weights(learner)
    return config


def without_checksum(layers: Layers) -> Layers:
    """Return the layers of a configuration without the checksum of weights where a layer above it names others."""
    kept: list[Mapping[str, Any]] = []
    for layer in layers:
        for section, naming in NAMING.items():
            given = layer.get(section)
            if isinstance(given, Mapping) and given.keys() & naming:
                kept = [_without(below, section) for below in kept]
        kept.append(layer)
    return kept


def _without(tree: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    given = tree.get(section)
    if not isinstance(given, Mapping):
        return tree
    return {**tree, section: {key: value for key, value in given.items() if key != "sha256"}}
