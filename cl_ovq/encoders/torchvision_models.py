"""Networks of torchvision, with published weights or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cl_ovq.encoders.base import ENCODERS, RANDOM, Built, EncoderOptions, Recipe, Source
from cl_ovq.encoders.network import last_linear, without
from cl_ovq.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cl_ovq.encoders.weights import weights_file
from cl_ovq.errors import UserError, first_line, nearest
from cl_ovq.options import option
from cl_ovq.paths import is_file

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


@dataclass
class TorchvisionOptions(EncoderOptions):
    """A network of torchvision."""

    model: str = option("resnet18", "name of a classifier in torchvision.models")


def find_torchvision(options: TorchvisionOptions, download: bool) -> Source:
    """Find the weights of a network of torchvision.

    Raises:
        UserError: it has no such network, or the weights are not there.
    """
    published = _published(options.model)
    recipe: Recipe = {"preprocessing": _preprocessing(published, options.weights).facts}
    if options.weights == RANDOM:
        return Source((), recipe)
    names = [weights.name for weights in published]
    if options.weights is None or (options.weights in names and not is_file(Path(options.weights))):
        if not names:
            raise UserError(f"encoder.weights: {options.model} has no published weights: set a file, or {RANDOM}")
        return Source((_downloaded(_chosen(published, options.weights), download),), recipe)
    try:
        return Source((weights_file(options.weights),), recipe)
    except UserError as error:
        raise UserError(
            f"{error}, and {options.model} has no published weights of that name: known: {', '.join(names)}, {RANDOM}"
        ) from error


@ENCODERS.enter(
    "torchvision",
    "a torchvision classifier (resnet18, vit_b_16, ...) with published weights or your own state dict",
    options=TorchvisionOptions,
    find=find_torchvision,
    packages=("torchvision",),
)
def build_torchvision(options: TorchvisionOptions, recipe: Recipe) -> Built:
    """Build a network of torchvision without its classifier.

    Raises:
        UserError: nothing tells where its classifier is.
    """
    from torchvision.models import get_model

    more = {"init_weights": False} if options.model in ("googlenet", "inception_v3") else {}
    network: nn.Module = get_model(options.model, weights=None, **more)
    classifier = last_linear(network)
    if classifier is None:
        if options.layer is None:
            raise UserError(f"encoder.layer: {options.model} does not end with a linear layer: set the module to use")
        return Built(network)
    return Built(without(network, [classifier]), (classifier,))


def _published(model: str) -> Any:
    """Return the published weights of a classifier."""
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise UserError(
            f"encoder.model: torchvision has no '{model}'{nearest(model, known) or ':'} known: {', '.join(known)}"
        )
    return models.get_model_weights(model)


def _chosen(published: Any, name: str | None) -> WeightsEnum:
    names = [weights.name for weights in published]
    found: WeightsEnum = published[name] if name in names else published.DEFAULT
    return found


def _preprocessing(published: Any, name: str | None) -> Preprocessing:
    """Return what published weights expect: those named, or the usual ones, which a file is taken to be like."""
    if not len(published):
        return Preprocessing(224, IMAGENET_MEAN, IMAGENET_STD)
    found = _chosen(published, name).transforms()
    size, whole = found.crop_size[0], found.resize_size[0]
    return Preprocessing(size, tuple(found.mean), tuple(found.std), found.interpolation.value, size / whole)


def _downloaded(weights: WeightsEnum, download: bool) -> Path:
    """Return the file of published weights, in the folder where PyTorch keeps those.

    Raises:
        UserError: it is not there and cannot be downloaded.
    """
    name = weights.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if is_file(path):
        return path
    wanted = f"encoder.weights: {weights} is not on this machine (as {path})"
    if not download:
        raise UserError(wanted)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), name.rpartition("-")[2].partition(".")[0], progress=True)
    except Exception as error:  # of whatever kind: the network's, or the disk's
        raise UserError(
            f"{wanted} and cannot be downloaded: {first_line(error)}: download {weights.url} elsewhere and set "
            f"encoder.weights=FILE; or use encoder.name=efficientnet_lite0, which works offline"
        ) from error
    return path
