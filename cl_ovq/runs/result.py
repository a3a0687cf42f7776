"""The result of a run: one object, the same on standard output, in `results.json` and in MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from cl_ovq.errors import unknown
from cl_ovq.evaluation.metrics import Matrix, by_age, seen_average, to_matrix
from cl_ovq.evaluation.records import (
    Amount,
    AnytimeRecord,
    CapacityRecord,
    Count,
    Dictionaries,
    LengthRecord,
    Number,
    Quantity,
)
from cl_ovq.metric_names import QUANTITIES
from cl_ovq.paths import RESULTS, write_atomically
from cl_ovq.strategies import STRATEGIES

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from cl_ovq.runs.given import GivenModel
    from streams import Stream


VERSION = 3  # of the fields of a result: 3 has `experiences`; files without a version are of version 1, as 2 is
PICTURES = {".png": "image/png", ".pdf": "application/pdf", ".svg": "image/svg+xml"}
LABEL = 24  # characters of what an experience holds, where it stands beside a number


def _inside(name: str) -> str:
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not name:
        raise ValueError("is not a file in the run's folder")
    return name


Rows = Annotated[list[list[Number | None]], Field(min_length=2)]


@with_config(ConfigDict(extra="forbid"))
class Divergence(TypedDict):
    """Where training ended because it diverged, see `cl_ovq.training.divergence.DivergedError`."""

    step: Count
    experience: Count
    reason: str


class Evaluated(TypedDict):
    """When and by what a finished run was evaluated again."""

    code: dict[str, Any]
    imports: NotRequired[dict[str, str]]
    device: str
    finished: str


class Provenance(TypedDict):
    """How a result came about.

    Attributes:
        seed: base random seed.
        code: `version`, `revision`, and whether the tree was `dirty`.
        packages: versions by name.
        imports: SHA-256 of the file of each import of the user's own (`cl_ovq.imports`), in turn those of all sessions
            of the run between which it has changed.
        data: source, files and checksums of the stream.
        device: in words.
        operator: `native` where OVQ attention in C++ is compiled, which `auto` takes on a CPU; `chunked` elsewhere.
        wall_seconds: of the whole run, and of training.
        train_seconds: of training alone.
        train_steps: of training.
        peak_memory_bytes: of the process on a CPU, allocated on a GPU.
        replay_samples: kept for replay.
        replay_bytes: of these.
        method_bytes: of what else the strategy carries from task to task; None where it is unknown.
        dictionary_bytes: of all dictionaries.
        memory_bytes: carried from task to task altogether, see `carried_bytes`.
        parameters: of the model; running statistics of batch norm are none.
        running_statistics: numbers that the running means and variances of the model's batch norms are.
        finished: when, in UTC.
        evaluated: every evaluation of the finished model since.
    """

    seed: int
    code: NotRequired[dict[str, Any]]
    packages: NotRequired[dict[str, Any]]
    imports: NotRequired[dict[str, list[str]]]
    data: NotRequired[dict[str, Any]]
    device: str
    operator: NotRequired[str]
    wall_seconds: Amount
    train_seconds: NotRequired[Amount]
    train_steps: Count
    peak_memory_bytes: Count
    replay_samples: NotRequired[Count]
    replay_bytes: Count
    method_bytes: NotRequired[Count | None]
    dictionary_bytes: Count
    memory_bytes: NotRequired[Count | None]
    parameters: NotRequired[Count]
    running_statistics: NotRequired[Count]
    finished: NotRequired[str]
    evaluated: NotRequired[list[Evaluated]]


@dataclass(frozen=True)
class Picture:
    """A picture in a file, which a notebook draws."""

    path: Path

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, bytes | str]:
        """Return the file under its type, as a notebook asks for it; of SVG, which is text, the text."""
        found, kind = self.path.read_bytes(), PICTURES[self.path.suffix]
        return {kind: found.decode() if kind == PICTURES[".svg"] else found}


@dataclass
class Result:
    """Everything that a run found. The types of its fields are what files are checked against when they are read.

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
        experiences: the names of each experience's classes, or of its domains where it is told by these; empty in
            results of version 2 and before, which do not say.
        version: of the fields, see `VERSION`; a file of a later one is refused.
    """

    run_id: str | None
    run_name: str
    matrix: Rows
    matrices: dict[str, Rows]
    metrics: dict[str, Number | None]
    dictionary: Dictionaries
    config: dict[str, Any]
    provenance: Provenance
    output_dir: str
    artifacts: dict[str, Annotated[str, AfterValidator(_inside)]] = field(default_factory=dict)
    quantity: Quantity = "accuracy"
    anytime: list[AnytimeRecord] = field(default_factory=list)
    lengths: list[LengthRecord] = field(default_factory=list)
    capacities: list[CapacityRecord] = field(default_factory=list)
    diverged: Divergence | None = None
    experiences: list[list[str]] = field(default_factory=list)
    version: Annotated[int, Field(ge=1)] = VERSION

    @property
    def verdict(self) -> str | None:
        """What happened to a run that diverged, in words; None for any other."""
        if self.diverged is None:
            return None
        return "diverged in step {step} (experience {experience}): {reason}".format_map(self.diverged)

    @property
    def labels(self) -> list[str]:
        """What each experience holds, in at most `LABEL` characters; empty where that is longer, or nothing tells."""
        joined = [", ".join(names) for names in self.experiences]
        if len(set(joined)) < min(2, len(self.matrix[0])):  # all experiences have the same classes
            return [""] * len(self.matrix[0])
        return [text if len(text) <= LABEL else "" for text in joined]

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

    @property
    def by_age(self) -> list[float | None]:
        """What is left of an experience after which a others were learned, for a from 0 on: `metrics.by_age`.

        None where no experience was evaluated at that age, and everywhere if all were learned at once.
        """
        name = self.config["strategy"]["name"]
        if name in STRATEGIES and STRATEGIES[name].at_once:
            return [None] * len(self.matrix[0])
        return finite(by_age(self.to_numpy()))

    @property
    def seen_average(self) -> list[float | None]:
        """The average over the experiences learned so far, after each; None where one of them was not evaluated."""
        sign = QUANTITIES[self.quantity]
        return [None if value is None else sign * value for value in finite(seen_average(self.to_numpy()))]

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
            name: Picture(Path(self.output_dir, file))
            for name, file in self.artifacts.items()
            if Path(file).suffix in PICTURES
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
        from cl_ovq.runs.validate import check_result  # which checks against this class

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


def carried_bytes(result: Result) -> int | None:
    """Return the bytes that a run carries from task to task beside its weights: dictionaries, replay, method.

    A dictionary that lives for one sequence carries nothing. None where a strategy from outside does not say what it
    keeps.
    """
    method = result.provenance.get("method_bytes", 0)
    if method is None:
        return None
    found = result.dictionary
    memory = found["memory"]["bytes"] if "memory" in found else 0
    dictionaries = 0 if found["scope"] == "sequence" else result.provenance["dictionary_bytes"]
    return int(dictionaries + memory + result.provenance["replay_bytes"] + method)


def common_labels(runs: Sequence[Result]) -> list[str]:
    """Return what each experience holds; none where that is not the same in all runs, as classes may be shuffled."""
    first, *others = {tuple(run.labels) for run in runs}
    return [] if others else list(first)


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
