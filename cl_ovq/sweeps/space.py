"""Search spaces: which values each key of the configuration may take.

optimizer.learning_rate: {loguniform: [1e-4, 1e-2]}
dictionary.capacity: {choice: [128, 256, 512]}
dictionary.learning_rate: {choice: [adaptive, floored]}
dictionary.rate: {uniform: [0.01, 0.2], when: {dictionary.learning_rate: [floored]}}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cl_ovq.errors import UserError, unknown
from cl_ovq.sweeps.schema import MOST_TRIALS

if TYPE_CHECKING:
    from optuna.trial import Trial

Point = dict[str, Any]
Places = tuple[tuple[int, int], ...]  # numbers of parameters, and places in their lists of values
MOST_VALUES = 2000
LISTS, RANGES = ("grid", "choice"), ("uniform", "loguniform", "randint")


@dataclass(frozen=True)
class Parameter:
    """The values of one key.

    Attributes:
        key: of the configuration.
        kind: `grid` or `choice` among values, or `uniform`, `loguniform` or `randint` between two, both included.
        values: the values, or the two ends.
        when: values of other keys under which this one counts; always if empty.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def active(self, point: Point) -> bool:
        """Return whether the key counts beside values that were chosen before."""
        return all(key in point and point[key] in values for key, values in self.when.items())

    def draw(self, generator: np.random.Generator) -> Any:
        """Return a random value."""
        if self.kind in LISTS:
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(generator.integers(low, high, endpoint=True))
        if self.kind == "loguniform":
            return float(np.exp(generator.uniform(math.log(low), math.log(high))))
        return float(generator.uniform(low, high))

    def suggest(self, trial: Trial) -> Any:
        """Return the value that Optuna suggests."""
        if self.kind in LISTS:
            return trial.suggest_categorical(self.key, self.values)
        low, high = self.values
        if self.kind == "randint":
            return trial.suggest_int(self.key, low, high)
        return trial.suggest_float(self.key, low, high, log=self.kind == "loguniform")

    def step(self, value: Any, generator: np.random.Generator) -> Any:
        """Return a neighbour of a value: the next in a list, or a fifth more or less."""
        if self.kind in LISTS:
            at = self.values.index(value) + int(generator.choice((-1, 1)))
            return self.values[min(max(at, 0), len(self.values) - 1)]
        moved = value * float(generator.choice((0.8, 1.25)))
        moved = min(max(moved, self.values[0]), self.values[1])
        return round(moved) if self.kind == "randint" else moved


@dataclass(frozen=True)
class Space:
    """The parameters of a sweep, those that others depend on before them."""

    parameters: tuple[Parameter, ...]

    @property
    def grids(self) -> list[str]:
        """Keys whose every value is tried."""
        return [parameter.key for parameter in self.parameters if parameter.kind == "grid"]

    def combinations(self, kinds: tuple[str, ...] = ("grid",)) -> list[Point]:
        """Return every combination of the parameters of some kinds, in order, without those that do not count."""
        points: list[Point] = [{}]
        for parameter in self.parameters:
            if parameter.kind not in kinds:
                continue
            wider: list[Point] = []
            for point in points:
                values = parameter.values if parameter.active(point) else None
                wider += [point] if values is None else [point | {parameter.key: value} for value in values]
            points = wider
        return points

    def count(self, kinds: tuple[str, ...] = ("grid",)) -> int:
        """Return how many combinations there are, without making them; of more than `MOST_TRIALS` perhaps too few.

        Only values that decide whether other keys count are told apart.
        """
        deciding = {key for parameter in self.parameters for key in parameter.when}
        counts: dict[Places, int] = {(): 1}
        for number, parameter in enumerate(self.parameters):
            if parameter.kind not in kinds:
                continue
            wider: Counter[Places] = Counter()
            for chosen, points in counts.items():
                values = {self.parameters[other].key: self.parameters[other].values[place] for other, place in chosen}
                if not parameter.active(values):
                    wider[chosen] += points
                elif parameter.key not in deciding:
                    wider[chosen] += points * len(parameter.values)
                else:
                    for place in range(len(parameter.values)):
                        wider[(*chosen, (number, place))] += points
            counts = wider
            if len(counts) > MOST_TRIALS:
                break
        return sum(counts.values())

    def draws(self, trials: int, seed: int) -> list[Point]:
        """Return random points, as many for every combination of the grids."""
        generator = np.random.default_rng(seed)
        cells = self.combinations()
        return [self._draw(cell, generator) for _ in range(trials // len(cells)) for cell in cells]

    def _draw(self, cell: Point, generator: np.random.Generator) -> Point:
        point: Point = {}
        for parameter in self.parameters:
            # Drawn in any case, so that one key's draws do not depend on another's value.
            value = cell.get(parameter.key) if parameter.kind == "grid" else parameter.draw(generator)
            if parameter.active(point) and (parameter.kind != "grid" or parameter.key in cell):
                point[parameter.key] = value
        return point

    def suggest(self, trial: Trial) -> Point:
        """Return the point that Optuna suggests."""
        point: Point = {}
        for parameter in self.parameters:
            if parameter.active(point):
                point[parameter.key] = parameter.suggest(trial)
        return point

    def perturb(self, point: Point, resample: float, generator: np.random.Generator) -> Point:
        """Return a point near another: every value a step away, or drawn anew with probability `resample`."""
        moved: Point = {}
        for parameter in self.parameters:
            if parameter.active(moved):
                anew = parameter.key not in point or generator.random() < resample
                value = parameter.draw(generator) if anew else parameter.step(point[parameter.key], generator)
                moved[parameter.key] = value
        return moved

    def samples(self) -> Iterator[Point]:
        """Return points that hold every value of each list and both ends of each range, the others drawn."""
        first: Point = {}
        for parameter in self.parameters:
            if parameter.kind == "grid" and parameter.active(first):
                first[parameter.key] = parameter.values[0]
        base = self._draw(first, np.random.default_rng(0))
        yield base
        for parameter in self.parameters:
            for value in parameter.values:
                yield self._active(base | self._conditions(parameter) | {parameter.key: value})

    def cells(self, keys: Collection[str]) -> Iterator[Point]:
        """Return points with every combination of the listed values of some keys, the others drawn."""
        chosen = Space(tuple(parameter for parameter in self.parameters if parameter.key in keys))
        yield from map(self._active, chosen.combinations(LISTS))

    def _active(self, point: Point) -> Point:
        """Return the values of a point that count beside each other, and draws for further keys that count then."""
        generator, found = np.random.default_rng(0), Point()
        for parameter in self.parameters:
            drawn = parameter.draw(generator)
            if parameter.active(found):
                found[parameter.key] = point.get(parameter.key, drawn)
        return found

    def _conditions(self, parameter: Parameter) -> Point:
        """Return values of other keys under which a parameter counts."""
        point: Point = {}
        for other in self.parameters:
            if other.key in parameter.when:
                point |= self._conditions(other) | {other.key: parameter.when[other.key][0]}
        return point


def read_space(tree: Mapping[str, Any]) -> Space:
    """Read the section `space` of a sweep file.

    Raises:
        UserError: naming the key, and what would be right.
    """
    parameters: list[Parameter] = []
    for key, description in tree.items():
        parameters.append(_parameter(key, description, [other.key for other in parameters]))
    if not parameters:
        raise UserError("space: a sweep needs at least one key to vary")
    if (values := sum(len(parameter.values) for parameter in parameters)) > MOST_VALUES:
        raise UserError(f"space: {values:,} values are more than the allowed {MOST_VALUES:,}")
    return Space(tuple(parameters))


def _parameter(key: str, description: Any, before: list[str]) -> Parameter:
    name = f"space.{key}"
    known = (*LISTS, *RANGES)
    if not isinstance(description, Mapping):
        raise UserError(f"{name}: {description!r} is not a description such as {{choice: [1, 2]}}")
    for word in description:
        if word not in (*known, "when"):
            raise unknown(f"kind of values at {name}", str(word), (*known, "when"))
    kinds = [word for word in description if word != "when"]
    if len(kinds) != 1:
        raise UserError(f"{name}: give one kind of values: {', '.join(known)}")
    (kind,) = kinds
    values = description[kind]
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}.{kind}: {values!r} is not a list of values")
    if kind in RANGES:
        _check_range(f"{name}.{kind}", kind, values)
    elif len({repr(value) for value in values}) < len(values):
        raise UserError(f"{name}.{kind}: duplicate value: {values}")
    when = {} if (given := description.get("when")) is None else given
    if not isinstance(when, Mapping):
        raise UserError(f"{name}.when: {when!r} is not a mapping of other keys to their values")
    for other, wanted in when.items():
        if other not in before:
            raise unknown(f"key at {name}.when, which must be one of those above it,", str(other), before)
        if wanted == []:
            raise UserError(f"{name}.when.{other}: {wanted} is not a value or a list of values")
    conditions = {str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    return Parameter(key, str(kind), tuple(values), conditions)


def _check_range(name: str, kind: str, values: list[Any]) -> None:
    kinds = int if kind == "randint" else (int, float)
    if len(values) != 2 or any(not isinstance(value, kinds) or isinstance(value, bool) for value in values):
        wanted = "two whole numbers" if kind == "randint" else "two numbers"
        raise UserError(f"{name}: {values} is not {wanted}, the lower and upper bound")
    for value in values:
        if not math.isfinite(value) or abs(value) >= 2**63:
            raise UserError(f"{name}: {value} is not a valid bound: it must be finite and fit into 64 bits")
    if not values[0] < values[1]:
        raise UserError(f"{name}: {values[0]} is not smaller than {values[1]}")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError(f"{name}: {values[0]} has no logarithm: it must be greater than 0")
