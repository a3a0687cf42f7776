"""The result of a run: one object, the same on standard output, in `results.json` and in MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_ovq.errors import unknown
from cl_ovq.evaluation.metrics import Matrix, to_matrix
from cl_ovq.paths import RESULTS, write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from cl_ovq.runs.given import GivenModel
    from streams import Stream


@dataclass(frozen=True)
class Picture:
    """A picture in a file, which a notebook draws."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


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
        diverged: where training ended because a loss or weights were not finite (`experience`, `step`, `reason`); the
            rows of the matrices from there on hold None. None for a run that did not diverge. Outputs that are not
            numbers at other lengths count as divergence too.
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
    diverged: dict[str, Any] | None = None

    @property
    def verdict(self) -> str | None:
        """What happened to a run that diverged, in words; None for any other."""
        if self.diverged is None:
            return None
        return "diverged in step {step} (experience {experience}): {reason}".format_map(self.diverged)

    def to_numpy(self, name: str | None = None) -> Matrix:
        """Return a results matrix `[T + 1, T]`, NaN where nothing was measured.

        Args:
            name: of one of `matrices`; `matrix` itself if None.

        Raises:
            UserError: there is none of that name.
        """
        if name is not None and name not in self.matrices:
            raise unknown("matrix", name, self.matrices)
        return to_matrix(self.matrix if name is None else self.matrices[name])

    def to_pandas(self) -> DataFrame:
        """Return the metrics as a data frame of one row, called like the run; NaN where one is undefined."""
        import pandas

        undefined = dict.fromkeys(self.metrics, math.nan)
        row = {"seed": self.config["seed"], **undefined, **summary_metrics(self)}
        return pandas.DataFrame([row], index=pandas.Index([self.run_name], name="run"))

    @property
    def figures(self) -> dict[str, Picture]:
        """The figures of the run by name; a notebook draws the one that a cell ends with."""
        return {
            name: Picture(Path(self.output_dir, file)) for name, file in self.artifacts.items() if file.endswith(".png")
        }

    def model(self, model: GivenModel | None = None, stream: Stream | None = None) -> Module:
        """Return the trained model from the run's checkpoint, in evaluation mode on the CPU.

        Args:
            model: where it was given from Python: it again, or what makes one like it; it stays as it is.
            stream: where it was given from Python: it again.

        Raises:
            UserError: there is no checkpoint, or what was given is missing.
        """
        from cl_ovq.runs.given import given
        from cl_ovq.runs.reevaluate import trained_model

        with given(model, stream, copied=True):
            return trained_model(self.output_dir)

    def to_json(self) -> str:
        """Return the result as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read the results of a run.

        It may have been moved, and may have come from somebody else: its directory is the one where it was found.

        Args:
            path: of `results.json`, or of the directory that holds it.

        Raises:
            UserError: it is not there, or no results of this version.
        """
        from cl_ovq.runs.validate import read_json

        file = path / RESULTS if path.is_dir() else path
        result = cls.of(read_json(file, "the results of a run"), file)
        return replace(result, output_dir=str(file.parent)) if file.name == RESULTS else result

    @classmethod
    def of(cls, tree: Any, path: Path) -> Result:
        """Return the result that plain data is.

        Args:
            tree: as it was read.
            path: of the file, for the message.

        Raises:
            UserError: it is none of this version.
        """
        from cl_ovq.runs.validate import check_result  # only what reads files needs pydantic

        return cls(**check_result(tree, path))

    def write(self, directory: Path) -> Path:
        """Write `results.json`, whole or not at all.

        Raises:
            UnwrittenError: not at all.
        """
        path = directory / RESULTS
        write_atomically(path, self.to_json() + "\n")
        return path


def finite(tree: Any) -> Any:
    """Return plain data with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


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
