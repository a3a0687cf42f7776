"""An encoder that a configuration names: which weights it has, and the module, made when it is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_ovq.encoders.base import (
    ENCODERS,
    IMAGES,
    TEXTS,
    AnyEncoderOptions,
    Built,
    EncoderOptions,
    Recipe,
    Source,
    facts_of,
)
from cl_ovq.encoders.network import AnyEncoderNetwork, EncoderNetwork, TextEncoderNetwork
from cl_ovq.encoders.preprocessing import Preprocessing
from cl_ovq.encoders.weights import checksum, load_weights, read_weights
from cl_ovq.errors import UserError, called, check_built
from cl_ovq.seeding import unchanged_randomness
from streams.cache import cache_root, digest_of, remembered

SEED = 0  # of weights that are drawn: one encoder for all runs


def features_root(options: AnyEncoderOptions) -> Path | None:
    """Return the folder where features are kept; None where they are not."""
    if not options.cache:
        return None
    return cache_root(None).with_name("features") if options.cache_dir is None else cache_root(options.cache_dir)


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder by its options.

    Attributes:
        name: of its part.
        options: the section `encoder` of a configuration.
        recipe: see `Source`.
        sha256: checksum of its weights, and of what code it is made of where that is the user's; None of random ones.
        missing: why the weights cannot be read now, where they were only known from an earlier run.
        by_file: whether a file decides the weights; otherwise the code that makes the network does.
    """

    name: str
    options: AnyEncoderOptions
    recipe: Recipe
    sha256: str | None
    missing: str | None = None
    by_file: bool = True

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done with images before the network gets them."""
        assert isinstance(self.options, EncoderOptions)
        return Preprocessing.of(self.recipe["preprocessing"], self.options)

    @property
    def facts(self) -> dict[str, Any]:
        """What a result must say of it, and what tells it from others: values that JSON can hold."""
        found = {"name": self.name, "sha256": self.sha256, **facts_of(self.options)}
        if ENCODERS[self.name].reads == IMAGES:
            preprocessing = self.preprocessing.facts
            found = {key: value for key, value in found.items() if key not in (*preprocessing, "crop", "normalize")}
            found["preprocessing"] = preprocessing
        if self.sha256 is not None and found.get("weights"):
            found["weights"] = Path(found["weights"]).name
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the features: not what the file of the weights is called.

        Code that makes weights by itself is run for it: it may have read them from anywhere.
        """
        found = {key: value for key, value in self.facts.items() if key != "weights" or self.sha256 is None}
        if self.sha256 is not None and not self.by_file:
            digest = hashlib.sha256()
            for name, tensor in sorted(state_of(self.network().backbone).items()):
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
            found["state"] = digest.hexdigest()
        return found

    def network(self) -> AnyEncoderNetwork:
        """Return the encoder with its weights, in evaluation mode on the CPU.

        Raises:
            UserError: it cannot be made, or the weights are not its own, or not there.
        """
        if self.missing is not None:
            raise UserError(self.missing)
        built = self._built()
        source = _find(self.name, self.options, download=True)
        if (load := ENCODERS[self.name].load) is not None:
            called(f"encoder.name: '{self.name}'", load, built, source)
        elif files := source.files[: source.weights]:
            tensors: dict[str, Tensor] = {}
            for file in files:
                tensors |= read_weights(file)
            what = f"{files[0]} does not fit {getattr(self.options, 'model', None) or self.name}"
            load_weights(built.network, tensors, built.classifier, what)
        return self._wrapped(built)

    def bare(self) -> AnyEncoderNetwork:
        """Return the encoder with random weights, which others are to take the place of."""
        return self._wrapped(self._built())

    def restored(self, state: Mapping[str, Tensor]) -> AnyEncoderNetwork:
        """Return the encoder with weights that a trained model was saved with."""
        network = self.bare()
        network.load_state_dict(state)
        return network

    def _built(self) -> Built:
        with unchanged_randomness():
            torch.manual_seed(SEED)
            what = f"encoder.name: '{self.name}'"
            found = called(what, ENCODERS[self.name].build, self.options, self.recipe)
            check_built(what, found, Built, "Built(network, classifier)")
            return found

    def _wrapped(self, built: Built) -> AnyEncoderNetwork:
        options = self.options
        if ENCODERS[self.name].reads == TEXTS:
            return TextEncoderNetwork(built.network, precision=getattr(options, "precision", "float32")).eval()
        assert isinstance(options, EncoderOptions)
        network = EncoderNetwork(
            built.network,
            self.preprocessing,
            layer=options.layer,
            pool=options.pool,
            precision=options.precision,
        )
        network.backbone.to(memory_format=torch.channels_last)  # twice as fast
        return network.eval()


def named_encoder(name: str, options: AnyEncoderOptions, root: Path | None, *, download: bool = True) -> NamedEncoder:
    """Return the encoder that a configuration names.

    Args:
        name: of its part.
        options: the section.
        root: folder where features are kept, which remembers encoders too; None for none. Where weights are not there
            any more, those that were there last are meant: their features may be.
        download: whether the weights may be fetched.

    Raises:
        UserError: there are no such weights, or they are others than the configuration says.
    """
    try:
        source = _find(name, options, download=download)
        found = NamedEncoder(name, options, source.recipe, checksum(source.files), by_file=source.weights > 0)
    except UserError as error:
        facts = _remembered(name, options, root)
        if facts is None:
            raise
        found = NamedEncoder(name, options, facts["recipe"], facts["sha256"], str(error))
    if options.sha256 not in (None, found.sha256):
        raise UserError(
            f"encoder.weights: they differ from the run's weights: sha256 is {found.sha256}, expected {options.sha256}"
        )
    return found


def remember(encoder: NamedEncoder, root: Path) -> None:
    """Keep which weights an encoder has, for when they are not there any more."""
    facts = {"recipe": encoder.recipe, "sha256": encoder.sha256}
    if _remembered(encoder.name, encoder.options, root) != facts:
        name = _memory(encoder.name, encoder.options)
        (root / f"{name}.json").unlink(missing_ok=True)
        remembered(name, root, lambda: facts)


def known_sha256(name: str, options: AnyEncoderOptions, root: Path | None) -> str | None:
    """Return the checksum of an encoder's weights where that can be told without making or fetching anything."""
    try:
        return checksum(_find(name, options, download=False).files)
    except UserError:
        facts = _remembered(name, options, root)
        return None if facts is None else facts["sha256"]


def package_versions(name: str) -> dict[str, str]:
    """Return the versions of the packages that an encoder's features depend on."""
    return {package: metadata.version(package) for package in ENCODERS[name].packages}


def _find(name: str, options: AnyEncoderOptions, *, download: bool) -> Source:
    find = ENCODERS[name].find
    assert find is not None
    found = called(f"encoder.name: '{name}'", find, options, download)
    check_built(f"encoder.name: what `find` of '{name}' returns", found, Source, "a Source")
    return found


def _memory(name: str, options: AnyEncoderOptions) -> str:
    given = getattr(options, "weights", None)
    weights = given and str(Path(given).absolute())
    return digest_of("encoder", name, facts_of(options), weights)


def _remembered(name: str, options: AnyEncoderOptions, root: Path | None) -> dict[str, Any] | None:
    if root is None:
        return None
    try:
        found: dict[str, Any] = json.loads((root / f"{_memory(name, options)}.json").read_text())
    except (OSError, ValueError):
        return None
    return found if found.keys() == {"recipe", "sha256"} else None


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network as they are saved."""
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
