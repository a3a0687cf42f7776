"""Which configurations describe the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from cl_ovq.config.load import SCALARS, SECTIONS, decisive, flatten


def same_run(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Return whether two resolved configurations describe the same run.

    Keys that one of them lacks, since the schema has grown in between, count with their default.

    Args:
        old: as stored in a result.
        new: as resolved now.
        defaults: of the schema, by dotted key.
    """
    return decisive(dict(defaults) | flatten(old)) == decisive(dict(defaults) | flatten(new))


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return a digest that two resolved configurations share if and only if they describe the same run."""
    leaves = decisive(dict(schema_defaults()) | flatten(tree))
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


@cache
def schema_defaults() -> Mapping[str, Any]:
    """Return the schema's defaults by dotted key: what a result that is older than a key has for it."""
    sections: dict[str, Any] = {name: asdict(section()) for name, section in SECTIONS.items()}
    return flatten(sections) | {field.name: field.default for field in SCALARS}
