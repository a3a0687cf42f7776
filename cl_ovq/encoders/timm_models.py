"""Networks of timm, with published weights or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_ovq.encoders.base import ENCODERS, RANDOM, Built, EncoderOptions, Recipe, Source, needed
from cl_ovq.encoders.hub import hub_folder
from cl_ovq.encoders.preprocessing import Preprocessing
from cl_ovq.encoders.weights import weights_file
from cl_ovq.errors import UserError, nearest
from cl_ovq.options import option

FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository, the first that is there


@dataclass
class TimmOptions(EncoderOptions):
    """A network of timm."""

    model: str = option("vit_tiny_patch16_224", "name of a timm model, optionally with a weights tag")


def find_timm(options: TimmOptions, download: bool) -> Source:
    """Find the weights of a network of timm.

    Raises:
        UserError: it has no such network, or the weights are not there.
    """
    facts = _published(options.model)
    found = Preprocessing(
        facts.input_size[-1], tuple(facts.mean), tuple(facts.std), facts.interpolation, facts.crop_pct or 1.0
    )
    recipe: Recipe = {"preprocessing": found.facts}
    if options.weights == RANDOM:
        return Source((), recipe)
    if options.weights is not None:
        return Source((weights_file(options.weights),), recipe)
    if not facts.hf_hub_id:
        raise UserError(
            f"encoder.weights: {options.model} has no published weights on the Hub: set a file, or {RANDOM}"
        )
    folder = hub_folder(facts.hf_hub_id, FILES[:1], download=download)
    return Source((_first(folder, facts.hf_hub_id),), recipe)


@ENCODERS.enter(
    "timm",
    "a timm model with published weights or your own state dict",
    options=TimmOptions,
    find=find_timm,
    packages=("timm",),
)
def build_timm(options: TimmOptions, recipe: Recipe) -> Built:
    """Build a network of timm without its classifier."""
    import timm

    network = timm.create_model(options.model, pretrained=False, num_classes=0)
    classifier = network.pretrained_cfg.get("classifier") or ()
    return Built(network, (classifier,) if isinstance(classifier, str) else tuple(classifier))


def _published(model: str) -> Any:
    """Return what timm knows of a model's published weights.

    Raises:
        UserError: it has no such model, or is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise needed("timm", "timm", error) from error
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        known = timm.list_models()
        raise UserError(
            f"encoder.model: timm has no '{name}'{nearest(name, known) or ':'} timm.list_models() has {len(known)}"
        )
    tags = [other.partition(".")[2] for other in timm.list_pretrained(name)]
    if tag and tag not in tags:
        raise UserError(
            f"encoder.model: {name} has no weights '{tag}'{nearest(tag, tags) or ':'} known: {', '.join(tags)}"
        )
    return timm.get_pretrained_cfg(model)


def _first(folder: Path, name: str) -> Path:
    for file in FILES:
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"encoder.weights: '{name}' has none of {', '.join(FILES)}")
