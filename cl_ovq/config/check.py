"""Checks of keys, types, names and ranges against the schema, worded for the person who wrote the configuration."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from cl_ovq.config.reading import Step, is_unicode
from cl_ovq.errors import UserError, nearest

FLOAT32 = 3.4028234663852886e38
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def checked_values(section: str, cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check type, choices and range of each given value against the fields of a dataclass.

    Returns:
        The values: whole numbers as floats where a field holds those, and numbers as text where it holds that, which
        only a reference to another key or a caller from Python gives.

    Raises:
        UserError: naming the key, the value and what is valid.
    """
    hints = hints_of(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    found = {}
    for key, value in values.items():
        name = f"{section}.{key}" if section else key
        check_type(name, value, hints[key])
        if value is not None:
            _check_limits(name, value, fields[key].metadata)
        found[key] = _converted(value, hints[key])
    return found


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    return typing.get_type_hints(cls)


def _converted(value: Any, hint: Any) -> Any:
    """Return a checked value as its field holds it."""
    if hint is Any:
        return value
    if isinstance(value, list):
        return [_converted(item, _inner(hint)) for item in value]
    if isinstance(value, dict):
        return {key: _converted(item, _inner(hint)) for key, item in value.items()}
    allowed = _plain_types(hint)
    if value is None or Any in allowed or type(value) in allowed:
        return value
    return float(value) if float in allowed else str(value)


def _inner(hint: Any) -> Any:
    """Return the type of a list's items or a mapping's values; None where there is no such thing."""
    parts = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) in (list, dict)]
    return typing.get_args(parts[0])[-1] if parts else None


def holds_text(cls: Any, path: Sequence[Step]) -> bool:
    """Return whether a place in a dataclass is text by its types: a field, or an item of a list or mapping in it."""
    hint = hints_of(cls).get(str(path[0])) if path else None
    for _ in path[1:]:
        hint = _inner(hint)
    return str in _plain_types(hint)


def field_of(field: dataclasses.Field[Any]) -> Any:
    """Return a copy of a dataclass field with default and metadata, for a dataclass made of some fields of another."""
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, metadata=field.metadata)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def is_optional(hint: Any) -> bool:
    """Return whether a type allows None."""
    return types.NoneType in _plain_types(hint)


def is_container(value: Any, hint: Any) -> bool:
    """Return whether a list or mapping stands where the type has one of its kind."""
    return type(value) in _plain_types(hint)


def check_type(name: str, value: Any, hint: Any) -> None:
    """Check the type of a value, and of the items in it.

    Raises:
        UserError: naming `name`, the value and what is valid.
    """
    allowed = _plain_types(hint)
    if isinstance(value, list | dict) and type(value) in allowed:
        _check_items(name, value, hint)
        return
    if isinstance(value, int) and value.bit_length() > 63:
        raise UserError(f"{name}: the integer is too large: it must fit into 64 bits")
    if Any in allowed or type(value) in allowed:
        if isinstance(value, str):
            _check_text(name, value)
        return
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        return
    if isinstance(value, int | float) and not isinstance(value, bool) and str in allowed:
        return  # YAML reads an unquoted name made of digits as a number
    wanted = " or ".join("null" if kind is types.NoneType else TYPE_NAMES.get(kind, str(kind)) for kind in allowed)
    raise UserError(f"{name}: {value!r} is not {wanted}")


def _check_text(name: str, value: str) -> None:
    """Refuse what no file, and no name of one, can hold, and what would mean something else when it is read again."""
    if "\0" in value or not is_unicode(value):
        raise UserError(f"{name}: {value!r} contains a character that cannot be encoded")
    if "${" in value:
        raise UserError(f"{name}: {value!r} cannot be literal text: '${{' starts a reference to another key")


def _check_items(name: str, value: list[Any] | dict[Any, Any], hint: Any) -> None:
    """Check the items of a list, or the keys and values of a mapping."""
    (container,) = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is type(value)]
    *keys, inner = typing.get_args(container)
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        where = f"{name}.{key}" if isinstance(value, dict) else f"{name}[{key}]"
        if keys:
            check_type(f"{name}: the key {key!r}", key, keys[0])
        check_type(where, item, inner)


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
    if isinstance(value, float) and abs(value) > FLOAT32:
        raise UserError(f"{name}: {value} is too large: the largest 32-bit number is {FLOAT32}")
