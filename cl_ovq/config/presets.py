"""`dictionary.preset`: values of several keys under one name, put in their place before anything else is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.errors import unknown
from kernels.options import PAPER

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"slot_init" if key == "seeds" else key: value for key, value in PAPER.items()}
}


def without_presets(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the layers of a configuration with the keys that a preset stands for; keys of the same layer beat them.

    A preset, or null, puts those of the layers below out of force.

    Raises:
        UserError: there is no such preset.
    """
    naming = [number for number, layer in enumerate(layers) if _named(layer)]
    return [
        _expanded(layer, in_force=number == naming[-1]) if number in naming else layer
        for number, layer in enumerate(layers)
    ]


def _named(layer: Mapping[str, Any]) -> bool:
    given = layer.get("dictionary")
    return isinstance(given, Mapping) and "preset" in given


def _expanded(layer: Mapping[str, Any], *, in_force: bool) -> Mapping[str, Any]:
    name = layer["dictionary"]["preset"]
    if name is not None and name not in PRESETS:
        raise unknown("dictionary.preset", str(name), PRESETS)
    own = {key: value for key, value in layer["dictionary"].items() if key != "preset"}
    return {**layer, "dictionary": PRESETS[name] | own if in_force and name is not None else own}
