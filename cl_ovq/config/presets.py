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
    """Return the layers of a configuration with the keys that presets stand for; keys of the same layer beat them.

    Raises:
        UserError: there is no such preset.
    """
    return [_expanded(layer) for layer in layers]


def _expanded(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    given = layer.get("dictionary")
    if not isinstance(given, Mapping) or "preset" not in given:
        return layer
    name = str(given["preset"])
    if name not in PRESETS:
        raise unknown("dictionary.preset", name, PRESETS)
    return {**layer, "dictionary": PRESETS[name] | {key: value for key, value in given.items() if key != "preset"}}
