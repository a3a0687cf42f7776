"""The result of a run: one object, the same on standard output, in `results.json` and in MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import Matrix

FILE_NAME = "results.json"


@dataclass
class Result:
    """Everything that a run found.

    Attributes:
        run_id: MLflow's id of the run; None where tracking is off.
        run_name: model, strategy and seed in words.
        matrix: `R`, `T + 1` rows of `T`: the quantity, with the sign turned where less of it is better; None where a
            row was not measured.
        matrices: further matrices by name (`task_masked_accuracy`, `loss`), with the sign that they have.
        metrics: metrics of `matrix` by name, and of the task-masked one; None where undefined. The averages of a
            loss are under its own name, with the sign that it has.
        dictionary: the dictionaries at the end, and their growth under `history`.
        config: the resolved configuration.
        provenance: seed, code, packages, data, device, time, memory.
        artifacts: files by name, relative to `output_dir`.
        output_dir: the run's directory.
        quantity: what the matrix holds: `accuracy`, or `bits_per_byte` or `squared_error` with the sign turned.
        anytime: every evaluation after training began (`evaluation.every_steps`): step, experience, values.
        lengths: the trained model on sequences of other lengths (`evaluation.lengths`).
        capacities: the same with dictionaries of other capacities (`evaluation.capacities`).
    """

    run_id: str | None
    run_name: str
    matrix: list[list[float | None]]
    matrices: dict[str, list[list[float | None]]]
    metrics: dict[str, float | None]
    dictionary: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
    output_dir: str
    artifacts: dict[str, str] = field(default_factory=dict)
    quantity: str = "accuracy"
    anytime: list[dict[str, Any]] = field(default_factory=list)
    lengths: list[dict[str, Any]] = field(default_factory=list)
    capacities: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the result as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read the results of a run.

        Args:
            path: of `results.json`, or of the directory that holds it.

        Raises:
            UserError: it is not there, or no results of this version.
        """
        file = path / FILE_NAME if path.is_dir() else path
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{file} does not hold the results of a run: {str(error).splitlines()[0]}") from error

    def write(self, directory: Path) -> Path:
        """Write `results.json`, whole or not at all."""
        path = directory / FILE_NAME
        write_atomically(path, self.to_json() + "\n")
        return path


def to_lists(matrix: Matrix) -> list[list[float | None]]:
    """Return a matrix as nested lists, with None for NaN."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def to_matrix(rows: list[list[float | None]]) -> Matrix:
    """Return nested lists as a matrix, with NaN for None."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, and the folders to it, so that a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def carried_bytes(result: Result) -> int:
    """Return the bytes that a run carries from task to task beside its weights: dictionaries, replay, method.

    A dictionary that lives for one sequence carries nothing.
    """
    found = result.dictionary
    memory = found.get("memory", {}).get("bytes", 0)
    dictionaries = 0 if found["scope"] == "sequence" else result.provenance["dictionary_bytes"]
    return int(dictionaries + memory + result.provenance["replay_bytes"] + result.provenance.get("method_bytes", 0))


def undefined_metrics(result: Result) -> list[str]:
    """Return the metrics that the run does not have: undefined ones, and accuracy where its stream has a loss."""
    return [name for name, value in ({"accuracy": None} | result.metrics).items() if value is None]


def summary_metrics(result: Result) -> Mapping[str, float]:
    """Return the numbers that are compared across runs of any kind, by the names they have in MLflow.

    Without a dictionary those of the dictionary are zero; metrics that are undefined for the run are left out.
    """
    numbers: dict[str, float | None] = {
        **result.metrics,
        "dictionary/size": result.dictionary["size"],
        "dictionary/effective_size": result.dictionary["effective_size"],
        "dictionary/bytes": result.dictionary["bytes"],
        "dictionary/plateau_tokens": result.dictionary.get("plateau_tokens"),
        "wall_seconds": result.provenance["wall_seconds"],
        "peak_memory_bytes": result.provenance["peak_memory_bytes"],
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}
