"""Values that come from the environment: refused in a configuration unless they are allowed, and never stored.

A configuration may have come from somebody else, and what is in it is stored and sent: `${oc.env:AWS_SECRET}` would be,
too. So a value refers to other keys only (`${model.width}`), and calls none of OmegaConf's resolvers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cl_ovq.errors import UserError

# A reference to another key, and what is left of one within which another stood.
REFERENCE = re.compile(r"\$\{\s*([\w.\[\]-]+)\s*\}")


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
                f"{key}: '{leaves[key]}' may read the environment, whose secrets a file of somebody else may ask for: "
                "allow it with --allow-env, or write the value"
            )
        if not key.startswith(indifferent):
            raise _deciding(key, leaves[key])
    written = {key: value for key, value in leaves.items() if key.startswith(indifferent) and _refers(value)}
    for key, value in leaves.items():
        if key not in written and any(_meets(target, other) for target in _targets(value) for other in written):
            raise _deciding(key, value)
    return written


def _deciding(key: str, value: Any) -> UserError:
    return UserError(
        f"{key}: '{value}' decides the result, and cannot come from the environment: write {key}=VALUE instead"
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
    for text in _texts(value):
        while (inner := REFERENCE.sub("x", text)) != text:
            text = inner
        if "${" in text:
            return True
    return False


def _targets(value: Any) -> list[str]:
    """Return the dotted keys that a value refers to; an empty one where that is only known when it is resolved."""
    found = []
    for text in _texts(value):
        targets = [re.sub(r"[\[\]]+", ".", target).strip(".") for target in REFERENCE.findall(text)]
        odd = "${" in REFERENCE.sub("", text) or any(target.startswith(".") for target in REFERENCE.findall(text))
        found += [""] if odd else targets
    return found


def _meets(target: str, key: str) -> bool:
    return not target or f"{key}.".startswith(f"{target}.") or f"{target}.".startswith(f"{key}.")
