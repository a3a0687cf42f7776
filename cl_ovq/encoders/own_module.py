"""A network of the user's own, from an import path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cl_ovq.encoders.base import ENCODERS, RANDOM, Built, EncoderOptions, Recipe, Source
from cl_ovq.encoders.preprocessing import Preprocessing
from cl_ovq.encoders.weights import weights_file
from cl_ovq.errors import UserError, nearest, own_code
from cl_ovq.imports import imported
from cl_ovq.options import option


@dataclass
class OwnModuleOptions(EncoderOptions):
    """A network of the user's own."""

    model: str | None = option(
        None,
        "callable without arguments that returns the network: ./nets.py:Encoder or my_lab.nets:Encoder; "
        "requires --import",
    )
    mean: list[float] = option([], "mean per image channel, subtracted; none if empty")  # noqa: RUF009 - option makes a field
    std: list[float] = option([], "standard deviation per image channel, divided by")  # noqa: RUF009
    interpolation: str = option(
        "bilinear", "interpolation, if size is given", choices=("bilinear", "bicubic", "nearest")
    )


def find_own_module(options: OwnModuleOptions, download: bool) -> Source:
    """Find the code and the weights of a network of the user's own.

    Raises:
        UserError: the code is not imported, or the weights are not there.
    """
    if len(options.mean) != len(options.std):
        raise UserError(f"encoder.std: has {len(options.std)} numbers, but encoder.mean has {len(options.mean)}")
    found = Preprocessing(options.size, tuple(options.mean), tuple(options.std), options.interpolation)
    recipe: Recipe = {"preprocessing": found.facts}
    code = (Path(str(_module_of(options)[0].__file__)),)
    if options.weights in (None, RANDOM):
        return Source(code, recipe, 0)
    return Source((weights_file(str(options.weights)), *code), recipe, 1)


@ENCODERS.enter(
    "file",
    "your own torch.nn.Module, from an import path, with weights from a file",
    options=OwnModuleOptions,
    find=find_own_module,
)
def build_own_module(options: OwnModuleOptions, recipe: Recipe) -> Built:
    """Build a network of the user's own.

    Raises:
        UserError: its code fails, or makes something else.
    """
    module, name = _module_of(options)
    if not callable(make := getattr(module, name, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"encoder.model: {options.model} has no '{name}'{nearest(name, known) or ':'} known: {', '.join(known)}"
        )
    with own_code(f"encoder.model: {options.model}", make):
        network = make()
    if not isinstance(network, nn.Module):
        raise UserError(f"encoder.model: {options.model} returns a {type(network).__name__}, not a torch.nn.Module")
    return Built(network)


def _module_of(options: OwnModuleOptions) -> tuple[Any, str]:
    """Return the imported module of an import path, and the name in it.

    Raises:
        UserError: it is no import path, or the module is not imported.
    """
    place, _, name = (options.model or "").rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(
            f"encoder.model: '{options.model or ''}' is not an import path: write ./nets.py:Encoder or "
            "my_lab.nets:Encoder"
        )
    return imported(place, "encoder.model"), name
