"""Values that come from the environment: refused in a configuration unless they are allowed, and never stored.

A configuration may have come from somebody else, and what is in it is stored and sent: `${oc.env:AWS_SECRET}` would be,
too. So a value refers to other keys only (`${model.width}`), and calls none of OmegaConf's resolvers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.errors import UserError

REFERENCE = re.compile(r"\$\{\s*([\w\[\]-][\w.\[\]-]*)\s*\}")  # to another key, by its whole name
LONGEST = 4 << 20  # characters of all values together, with what references stand for


def check_environment(leaves: Mapping[str, Any], indifferent: tuple[str, ...], *, allowed: bool) -> dict[str, Any]:
    """Check what in a configuration may read the environment, and return what of it is stored as it is written.

    Args:
        leaves: of the configuration as written, by dotted key.
        indifferent: prefixes of the keys that decide no result. Only these can come from the environment: a result
            could not be had again from its configuration otherwise.
        allowed: whether any may.

    Raises:
        UserError: a key reads it that may not.
    """
    calling = [key for key, value in leaves.items() if _calls(value)]
    if not calling:
        return {}
    for key in calling:
        if not allowed:
            raise UserError(
                f"{key}: '{leaves[key]}' is not just a reference to a key and may read the environment, which could "
                "expose secrets to somebody else's file: allow it with --allow-env, or write the value"
            )
        if not key.startswith(indifferent):
            raise _deciding(key, leaves[key])
    written = {key: value for key, value in leaves.items() if key.startswith(indifferent) and _refers(value)}
    for key, value in leaves.items():
        if key not in written and any(_meets(target, other) for target in _targets(value) for other in written):
            raise _deciding(key, value)
    return written


def check_references(tree: Mapping[str, Any]) -> None:
    """Check how long the texts of a configuration become: ten lines of ten references each may stand for 10^10 letters.

    Args:
        tree: the configuration as written.

    Raises:
        UserError: longer than any that people write.
    """
    texts: dict[str, str] = {}
    inside: dict[str, list[str]] = {}

    def enter(place: str, value: Any) -> None:
        if isinstance(value, str):
            texts[place] = value
        elif isinstance(value, Mapping | Sequence):
            items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
            inside[place] = [f"{place}.{key}" for key, _ in items]
            for key, inner in items:
                enter(f"{place}.{key}", inner)

    lengths: dict[str, int] = {}

    def length(place: str) -> int:
        if place not in lengths:
            lengths[place] = 0  # where references go in a circle, OmegaConf says so
            text = texts.get(place, "")
            further = [f".{target}" for target in _targets(text) if target] + inside.get(place, [])
            lengths[place] = len(text) + sum(length(other) for other in further)
        return lengths[place]

    enter("", tree)
    if length("") > LONGEST:
        raise UserError(f"after resolving references, the values have more than {LONGEST} characters")


def _deciding(key: str, value: Any) -> UserError:
    return UserError(
        f"{key}: '{value}' affects the result, so it cannot come from the environment: write {key}=VALUE instead"
    )


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, Sequence) else []


def _refers(value: Any) -> bool:
    return any("${" in text for text in _texts(value))


def _calls(value: Any) -> bool:
    """Return whether anything but references to keys is in a value: a resolver, whatever its name is made of."""
    return any("${" in REFERENCE.sub("", text) for text in _texts(value))


def _targets(value: Any) -> list[str]:
    """Return the dotted keys that a value refers to; an empty one where that is only known when it is resolved."""
    found = []
    for text in _texts(value):
        targets = [re.sub(r"[\[\]]+", ".", target).strip(".") for target in REFERENCE.findall(text)]
        found += [""] if _calls(text) else targets
    return found


def _meets(target: str, key: str) -> bool:
    return not target or f"{key}.".startswith(f"{target}.") or f"{target}.".startswith(f"{key}.")
