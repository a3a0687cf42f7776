"""What is known of each trial: kept by the driver in a file of its own, so that a sweep can go on after anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cl_ovq.errors import UserError
from cl_ovq.paths import write_atomically
from cl_ovq.runs.validate import first_mistake, read_json
from cl_ovq.sweeps.space import Point
from cl_ovq.uris import redact_tree

FILE_NAME = "trial.json"
RUNNING, DONE, STOPPED = "running", "done", "stopped"
FAILED, DIVERGED, OUT_OF_MEMORY = "failed", "diverged", "out of memory"
ENDED = (DONE, STOPPED, FAILED, DIVERGED, OUT_OF_MEMORY)
BROKEN = (FAILED, DIVERGED, OUT_OF_MEMORY)


@dataclass
class Record:
    """One trial.

    Attributes:
        trial: its number.
        point: its values of the space; with population-based training the latest ones.
        status: one of those above; `running` where it has not ended, or was cut short.
        values: the objectives at its end, by metric.
        experiences: learned so far, of all its seeds.
        history: `[experiences, first objective]` after each experience.
        error: why it failed.
        runs: of each seed: `seed`, `run_id`, `output_dir`, `metrics`, `seconds`, `setup_seconds`, `reused`,
            `diverged`.
        points: `[experiences, point]` wherever the point changed (population-based training).
        entered: when its worker began with it, in seconds since the epoch.
        left: when its worker ended it.
        node: host name and process of its worker; empty, as the times are zero, where it did not end itself.
        deaths: how often its process or node died.
    """

    trial: int
    point: Point
    status: str = RUNNING
    values: dict[str, float] = field(default_factory=dict)
    experiences: int = 0
    history: list[list[Any]] = field(default_factory=list)
    error: str | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    points: list[list[Any]] = field(default_factory=list)
    entered: float = 0.0
    left: float = 0.0
    node: str = ""
    deaths: int = 0

    @property
    def ended(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in ENDED

    def write(self, directory: Path) -> None:
        """Write it under a sweep's directory."""
        folder = trial_directory(directory, self.trial)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE_NAME, json.dumps(redact_tree(asdict(self)), indent=1) + "\n")


def trial_directory(directory: Path, trial: int) -> Path:
    """Return where a trial's runs are kept."""
    return directory / "trials" / f"{trial:04d}"


def read_records(directory: Path) -> dict[int, Record]:
    """Return the trials of a sweep by number.

    Raises:
        UserError: a file does not hold one.
    """
    found, kind = {}, TypeAdapter(Record)
    for path in sorted((directory / "trials").glob(f"*/{FILE_NAME}")):
        text = json.dumps(read_json(path, "the record of a trial"))
        try:
            record = kind.validate_json(text, strict=True)  # only from JSON is a mapping a record
        except ValidationError as error:
            raise UserError(f"{path} does not contain the record of a trial: {first_mistake(error)}") from error
        if record.status not in (RUNNING, *ENDED):
            raise UserError(f"{path} does not contain the record of a trial: status: '{record.status}' is not known")
        found[record.trial] = record
    return found


def best(records: Iterable[Record], objectives: Mapping[str, str]) -> Record | None:
    """Return the trial that is best by the first objective among those that ran to their end; the others break ties."""
    done = [record for record in records if record.status == DONE]
    signs = {metric: 1 if mode == "max" else -1 for metric, mode in objectives.items()}
    return max(
        done, key=lambda record: ([sign * record.values[m] for m, sign in signs.items()], -record.trial), default=None
    )


def pareto_front(records: Iterable[Record], objectives: Mapping[str, str]) -> list[Record]:
    """Return the trials that no other one beats in one objective without losing in another, the best first."""
    done = [record for record in records if record.status == DONE]
    signs = {metric: 1 if mode == "max" else -1 for metric, mode in objectives.items()}

    def costs(record: Record) -> list[float]:
        return [-sign * record.values[metric] for metric, sign in signs.items()]

    def beaten(record: Record) -> bool:
        mine = costs(record)
        return any(
            all(a <= b for a, b in zip(costs(other), mine, strict=True)) and costs(other) != mine for other in done
        )

    return sorted((record for record in done if not beaten(record)), key=costs)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of numbers; None where one is missing or not finite."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
