"""Which configurations describe the same run: the only place that says what of a configuration decides its numbers.

Every key belongs to one of three kinds. Those of `INDIFFERENT` decide no result. Those of `EVALUATION` decide what is
measured on the finished model alone, which can be done later. All others decide training, and what is recorded while it
goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cl_ovq.config.keys import flatten
from cl_ovq.config.parts import current, default_of, schema_of
from cl_ovq.config.schema import SCALARS
from cl_ovq.errors import UserError

# Prefixes of keys that decide no result: where it is kept, and on what it is computed.
INDIFFERENT = (
    "tracking.",
    "checkpoint.",
    "stream.cache",  # and stream.cache_dir: the samples are the same bits
    "encoder.cache",
    "encoder.batch_size",
    "output_dir",
    "threads",
    "device",
    "seeds",
    "figures",
    "figure_format",
    "imports",
)
# Keys of what is measured on the finished model.
EVALUATION = (
    "evaluation.lengths",
    "evaluation.length_tokens",
    "evaluation.capacities",
    "evaluation.log_length_scaling",
)

Leaves = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides the numbers of a run, by dotted key. Runs of equal identities give equal numbers.

    Attributes:
        training: what decides training, and what is recorded while it goes on.
        evaluation: what is measured on the finished model.
    """

    training: Leaves
    evaluation: Leaves

    @property
    def whole(self) -> dict[str, Any]:
        """Both."""
        return {**self.training, **self.evaluation}


def identity(tree: Mapping[str, Any]) -> Identity:
    """Return what of a resolved configuration decides the numbers of its run.

    Keys that it lacks, since the schema has grown since it was stored, count with their default; keys that its parts do
    not use do not count.

    Args:
        tree: as resolved now, or as stored in a result.
    """
    tree = current(tree)
    leaves = _defaults(tree) | flatten(tree)
    deciding = {key: value for key, value in leaves.items() if not key.startswith(INDIFFERENT)}
    return Identity(
        {key: value for key, value in deciding.items() if key not in EVALUATION},
        {key: value for key, value in deciding.items() if key in EVALUATION},
    )


def fingerprint(leaves: Leaves) -> str:
    """Return a digest that two identities, or two like parts of them, share if and only if they are equal."""
    return hashlib.sha256(json.dumps(_plain(dict(leaves)), sort_keys=True).encode()).hexdigest()


def differences(a: Leaves, b: Leaves) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two identities, or two like parts of them, differ, each with both values.

    A key that one of them lacks, as its parts do not have it, is None there.
    """
    pairs = {key: (a.get(key), b.get(key)) for key in (*a, *b)}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def _plain(value: Any) -> Any:
    """Return a value with whole numbers as integers: `100` and `100.0` are equal, and JSON writes them differently."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
