"""What a study chooses hyper-parameters from: values by key, some of which count only beside certain other values.

optimizer.learning_rate: [1e-3, 1e-2]
strategy.alpha: {choice: [0.1, 0.5], when: {strategy.name: [der, derpp]}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cl_ovq.config.files import as_mapping
from cl_ovq.errors import UserError, unknown


class Choice(NamedTuple):
    """The values of a key.

    Attributes:
        values: to choose from.
        when: values of other keys beside which this one counts; always if empty.
    """

    values: list[Any]
    when: dict[str, list[Any]]


Grid = dict[str, Choice]


def read_grid(tree: Any, name: str) -> Grid:
    """Return a grid from its YAML.

    Args:
        tree: by key a list of values, or `{choice: [...], when: {...}}`.
        name: of its place, for messages.

    Raises:
        UserError: naming the place, and what would be right.
    """
    return {key: _choice(values, f"{name}.{key}") for key, values in as_mapping(tree, name).items()}


def _choice(values: Any, name: str) -> Choice:
    when: dict[str, list[Any]] = {}
    if isinstance(values, Mapping):
        for word in values:
            if word not in ("choice", "when"):
                raise unknown(f"word at {name}", str(word), ("choice", "when"))
        conditions = as_mapping(values.get("when") or {}, f"{name}.when")
        when = {key: list(value) if isinstance(value, list) else [value] for key, value in conditions.items()}
        values = values.get("choice")
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}: {values!r} is not a list of values")
    return Choice(values, when)


def points_of(grid: Grid, settings: Callable[[], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the combinations of a grid, each without the keys that do not count in it.

    Args:
        grid: to be combined; a key's conditions are on keys above it, or on what is set anyway.
        settings: returns what is set anyway, by dotted key; called only where there are conditions.

    Raises:
        UserError: a condition is on a key that is nowhere.
    """
    points: list[dict[str, Any]] = [{}]
    for key, choice in grid.items():
        known = settings() if choice.when else {}
        for other in choice.when:
            if other not in known and other not in grid:
                raise unknown(f"key at {key}.when", other, known)
        extended = []
        for point in points:
            counts = all({**known, **point}.get(other) in values for other, values in choice.when.items())
            extended += [point | {key: value} for value in choice.values] if counts else [point]
        points = extended
    return points
