"""Which configurations describe the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cl_ovq.config.load import decisive, flatten
from cl_ovq.config.parts import current, default_of, schema_of
from cl_ovq.config.schema import SCALARS
from cl_ovq.errors import UserError


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return a digest that two resolved configurations share if and only if they describe the same run.

    Keys that one of them lacks, since the schema has grown in between, count with their default; keys that its parts do
    not use do not count.

    Args:
        tree: as resolved now, or as stored in a result.
    """
    tree = current(tree)
    leaves = decisive(_defaults(tree) | flatten(tree))
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def _defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a configuration's parts by dotted key: what a result that is older than a key has."""
    try:
        schema = schema_of(tree)
    except UserError:  # it names a part that is not there
        return {}
    found = {field.name: default_of(field) for field in SCALARS}
    for section, cls in schema.items():
        found |= {f"{section}.{field.name}": default_of(field) for field in dataclasses.fields(cls)}
    return {key: value for key, value in found.items() if value is not dataclasses.MISSING}
