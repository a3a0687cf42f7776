"""Checks of keys, types, names and ranges against the schema, worded for the person who wrote the configuration."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.errors import UserError, nearest

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def check_keys(tree: Mapping[str, Any], schema: Mapping[str, Any], scalars: Sequence[dataclasses.Field[Any]]) -> None:
    """Refuse a key that no section has.

    Args:
        tree: nested mappings as read from YAML.
        schema: the dataclass of each section.
        scalars: the fields outside any section.
    """
    top = [*schema, *(field.name for field in scalars)]
    for key, value in tree.items():
        if key not in top:
            raise _unknown_key(str(key), str(key), top, schema)
        if key not in schema or value is None:
            continue
        if not isinstance(value, Mapping):
            raise UserError(f"{key}: '{value}' is not a section: write {key}.name={value}, or another of its keys")
        known = [field.name for field in dataclasses.fields(schema[key])] + (["name"] if key == "stream" else [])
        for inner in value:
            if inner not in known:
                raise _unknown_key(f"{key}.{inner}", str(inner), known, schema)


def check_values(section: str, cls: Any, values: Mapping[str, Any]) -> None:
    """Check type, choices and range of each given value against the fields of a dataclass.

    Raises:
        UserError: naming the key, the value and what is valid.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in values.items():
        name = f"{section}.{key}" if section else key
        _check_type(name, value, hints[key])
        if value is not None:
            _check_limits(name, value, fields[key].metadata)


def field_of(field: dataclasses.Field[Any]) -> Any:
    """Return a copy of a dataclass field with default and metadata, for a dataclass made of some fields of another."""
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, metadata=field.metadata)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def _check_type(name: str, value: Any, hint: Any) -> None:
    allowed = _plain_types(hint)
    if isinstance(value, list | dict) and type(value) in allowed:
        _check_items(name, value, hint)
        return
    if isinstance(value, int) and value.bit_length() > 63:
        raise UserError(f"{name}: the whole number is too large: it must lie within 64 bits")
    if Any in allowed or type(value) in allowed:
        return
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        return
    if isinstance(value, int | float) and not isinstance(value, bool) and str in allowed:
        return  # YAML reads an unquoted name made of digits as a number
    wanted = " or ".join("null" if kind is types.NoneType else TYPE_NAMES.get(kind, str(kind)) for kind in allowed)
    raise UserError(f"{name}: {value!r} is not {wanted}")


def _check_items(name: str, value: list[Any] | dict[Any, Any], hint: Any) -> None:
    """Check the items of a list, or the keys and values of a mapping."""
    (container,) = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is type(value)]
    *keys, inner = typing.get_args(container)
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        where = f"{name}.{key}" if isinstance(value, dict) else f"{name}[{key}]"
        if keys and not isinstance(key, keys[0]):
            raise UserError(f"{where}: the key {key!r} is not {TYPE_NAMES[keys[0]]}")
        _check_type(where, item, inner)


def _plain_types(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _plain_types(part)]
    return [typing.get_origin(hint) or hint]


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        hint = nearest(str(value), choices) or ":"
        raise UserError(f"{name}: unknown choice '{value}'{hint} known: {', '.join(choices)}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_limits(f"{name}[{index}]", item, limits)
        return
    if isinstance(value, str | bool | dict):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {value} is not a finite number")
    if "minimum" in limits and value < limits["minimum"]:
        raise UserError(f"{name}: {value} is too small: it must be at least {limits['minimum']}")
    if "exclusive_minimum" in limits and value <= limits["exclusive_minimum"]:
        raise UserError(f"{name}: {value} is too small: it must be greater than {limits['exclusive_minimum']}")
    if "maximum" in limits and value > limits["maximum"]:
        raise UserError(f"{name}: {value} is too large: it must be at most {limits['maximum']}")


def _unknown_key(name: str, key: str, known: Sequence[str], schema: Mapping[str, Any]) -> UserError:
    elsewhere = [
        f"{section}.{key}"
        for section, cls in schema.items()
        if key in {field.name for field in dataclasses.fields(cls)}
    ]
    section = name.removesuffix(key)
    hint = f": did you mean '{elsewhere[0]}'?" if elsewhere else nearest(key, known, prefix=section) or ":"
    return UserError(f"unknown key '{name}'{hint} known: {', '.join(sorted(known))}")
