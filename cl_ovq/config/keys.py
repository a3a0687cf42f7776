"""Checks of the keys of a configuration, layer by layer, against the parts that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.config.check import check_type, hints_of, is_container
from cl_ovq.config.parts import owners, schema_of, unused
from cl_ovq.config.renamed import RENAMED
from cl_ovq.config.schema import SCALARS
from cl_ovq.errors import UserError, nearest

Tree = dict[str, Any]


def settle(layers: Sequence[Mapping[str, Any]]) -> tuple[Tree, dict[str, type]]:
    """Lay a configuration's layers over each other, and check the keys of each.

    A layer (an included file, the file, overrides) may have the keys of the parts that are named where it ends: by
    itself, or by a layer below it. What the parts named at last do not have is left out.

    Args:
        layers: nested mappings, the lowest first.

    Returns:
        What is given, and the dataclass of every section.

    Raises:
        UserError: a key or a name is unknown, or a key is not one of the named parts.
    """
    merged: Tree = {}
    open_layer: Tree = {}
    for number, layer in enumerate(layers):
        merged, open_layer = lay_over(merged, layer), lay_over(open_layer, layer)
        if number + 1 < len(layers) and not _names_stream(merged):
            continue  # a part of an experiment: the layer above goes on with it
        check_keys(open_layer, merged)
        open_layer = {}
    schema = schema_of(merged)
    kept: Tree = {}
    for key, value in merged.items():
        if key in schema and isinstance(value, Mapping):
            known = {field.name for field in dataclasses.fields(schema[key])}
            kept[key] = {inner: given for inner, given in value.items() if inner in known}
        elif key in schema or key not in sections():
            kept[key] = value
    return kept, schema


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """Return one nested mapping over another; an empty section above says nothing."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = lay_over(merged[key], value)
        elif value is not None or key not in sections() or key not in merged:
            merged[key] = value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def sections() -> list[str]:
    """Return the names of all sections that a configuration may have."""
    return list(dict.fromkeys(owner.section for owner in owners()))


def check_keys(layer: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Refuse a key that the named parts do not have, and a list or a mapping where there is to be something else.

    A key that is null says nothing, and so may be one of other parts; a section that is null would do nothing.

    Args:
        layer: nested mappings as read from YAML.
        merged: the layer over those below it, which says what parts there are.

    Raises:
        UserError: see above.
    """
    top = [*sections(), *(field.name for field in SCALARS)]
    for key in layer:
        if key not in top:
            raise _unknown_key(str(key), str(key), top, merged)
    schema = schema_of(merged)
    for key, value in layer.items():
        if key not in sections():
            continue
        if value is None:
            if merged.get(key):
                raise UserError(f"{key}: null removes nothing: set keys of the section, such as {key}.name")
            continue
        known = [field.name for field in dataclasses.fields(schema[key])] if key in schema else []
        for inner, given in value.items():
            if inner not in known:
                if (old := f"{key}.{inner}") in RENAMED:
                    raise UserError(f"{old}: this key is now called {RENAMED[old]}")
                mistake = unused(f"{key}.{inner}", merged)
                if mistake is None:
                    raise _unknown_key(f"{key}.{inner}", str(inner), known, merged)
                if given is not None:
                    raise mistake
                continue
            hint = hints_of(schema[key]).get(inner, str)
            if isinstance(given, list | dict) and not is_container(given, hint):
                check_type(f"{key}.{inner}", given, hint)  # it could not be laid over the default


def _names_stream(tree: Mapping[str, Any]) -> bool:
    stream = tree.get("stream")
    return stream is not None and (not isinstance(stream, Mapping) or stream.get("name") is not None)


def _unknown_key(name: str, key: str, known: Sequence[str], merged: Mapping[str, Any]) -> UserError:
    # Where else the key is: in a section as it is, or else as other parts would make it.
    present = schema_of(merged).items() if _names_stream(merged) else ()
    anywhere = [(owner.section, owner.options) for owner in owners()]
    elsewhere = [
        f"{section}.{key}"
        for section, cls in (*present, *anywhere)
        if key in {field.name for field in dataclasses.fields(cls)}
    ]
    section = name.removesuffix(key)
    hint = f": did you mean '{elsewhere[0]}'?" if elsewhere else nearest(key, known, prefix=section) or ":"
    return UserError(f"unknown key '{name}'{hint} known: {', '.join(sorted(known))}")
