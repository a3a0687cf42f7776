"""Which configurations describe the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from cl_ovq.config.load import SCALARS, SECTIONS, decisive, flatten


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return a digest that two resolved configurations share if and only if they describe the same run.

    Keys that one of them lacks, since the schema has grown in between, count with their default.

    Args:
        tree: as resolved now, or as stored in a result.
    """
    leaves = decisive(dict(_defaults()) | flatten(tree))
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


@cache
def _defaults() -> Mapping[str, Any]:
    """Return the schema's defaults by dotted key: what a result that is older than a key has for it."""
    sections: dict[str, Any] = {name: asdict(section()) for name, section in SECTIONS.items()}
    return flatten(sections) | {field.name: field.default for field in SCALARS}
