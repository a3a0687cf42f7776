"""How a part declares its options: dataclass fields with a meaning and a range, beside the part itself."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_ovq.registry import Registry

# Values beyond these can only fail: no machine has the memory, or the run never ends.
WIDEST = 65_536  # features
COUNT = 10**11  # slots, samples
LONGEST = 2**24  # tokens in a sequence


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    exclusive_minimum: float | None = None,
    maximum: float | None = None,
    parts: Registry[Any] | None = None,
    replaces: str | None = None,
    adjustable: bool | None = None,
) -> Any:
    """Declare a field of an options dataclass.

    Args:
        default: the value when the configuration says nothing; a list or dict is copied for each use.
        help: what the field means, with its unit.
        choices: the names it may hold.
        minimum: the smallest value.
        exclusive_minimum: a bound that the value must exceed.
        maximum: the largest value.
        parts: the field names a part, or a list of parts, of this registry. The options of the named parts join the
            section that the field is in.
        replaces: another field of the same dataclass, whose part is not used where this field is set.
        adjustable: whether it may change while weights, dictionaries and optimizer go on: population-based training
            searches among such options only.
    """
    given = {
        "choices": choices,
        "minimum": minimum,
        "exclusive_minimum": exclusive_minimum,
        "maximum": maximum,
        "parts": parts,
        "replaces": replaces,
        "adjustable": adjustable,
    }
    metadata = {"help": help} | {name: value for name, value in given.items() if value is not None}
    if isinstance(default, list | dict):
        kind = type(default)
        return field(default_factory=lambda: kind(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(cls: Any) -> None:
    """Make sure that a dataclass can be the options of a part.

    Raises:
        TypeError: it is none, or a field has no default, or is of a type that no configuration holds.
    """
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise TypeError(
            f"options: {getattr(cls, '__name__', cls)} is not a dataclass: write @dataclass above the class"
        )
    hints = typing.get_type_hints(cls)
    for one in fields(cls):
        name = f"{cls.__name__}.{one.name}"
        if one.default is MISSING and one.default_factory is MISSING:
            raise TypeError(f"options: {name} has no default: write {one.name} = option(DEFAULT, HELP)")
        if (odd := _odd_type(hints[one.name])) is not None:
            raise TypeError(
                f"options: {name} is of type {getattr(odd, '__name__', odd)}, which configurations do not support: "
                "use int, "
                "float, bool, str, Any, a list or dict of these, or one of them | None"
            )


def _odd_type(hint: Any) -> Any:
    """Return what in a type no configuration can hold; None if there is nothing."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return None
    if origin in (typing.Union, types.UnionType, list, dict):
        return next((odd for odd in map(_odd_type, inner) if odd is not None), None)
    return hint


PLAIN = (int, float, bool, str, list, dict, Any, types.NoneType)


@dataclass
class NoOptions:
    """The options of a part that has none."""
