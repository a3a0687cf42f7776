"""Results of runs that were read from a file, whoever wrote it: checked before anything is made of them.

What nothing here names is kept as it is: programs that read it say what they need by adding it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cl_ovq.config.parts import current
from cl_ovq.errors import UserError
from cl_ovq.metric_names import QUANTITIES
from cl_ovq.paths import read_regular

LARGEST = 2**63
LARGEST_FILE = 1 << 29  # bytes: a matrix of 3000 experiences, and as much of everything else
DEEPEST = 60
Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
Amount = Annotated[Number, Field(ge=0)]
Matrix = Annotated[list[list[Number | None]], Field(min_length=2)]


def _inside(name: str) -> str:
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not name:
        raise ValueError("is no file of the run's folder")
    return name


def _quantity(name: str) -> str:
    if name not in QUANTITIES:
        raise ValueError(f"is none of {', '.join(QUANTITIES)}")
    return name


class Open(BaseModel):
    """What has further fields."""

    model_config = ConfigDict(extra="allow")


class _Name(Open):
    name: str


class _StreamConfig(_Name):
    scenario: str | None = None
    source: str | None = None
    length: Count | None = None


class _EvaluationConfig(Open):
    split: str


class _Config(Open):
    seed: int = Field(ge=-LARGEST, lt=LARGEST)
    stream: _StreamConfig
    strategy: _Name
    evaluation: _EvaluationConfig


class _Record(Open):
    step: Count
    size: Amount


class _Plateau(Open):
    start_tokens: Amount
    start_step: Count
    end_tokens: Amount | None
    end_step: Count | None


class _Bytes(Open):
    bytes: Count


class _Dictionary(Open):
    scope: Literal["sequence", "shared", "none"]
    size: Amount
    effective_size: Amount
    tokens: Amount = 0
    bytes: Count
    capacity: Amount | None = None
    plateau_tokens: Amount | None = None
    plateaus: list[_Plateau] = []
    census: list[dict[str, Any]] = []
    history: list[_Record] = []
    layers: dict[str, _Bytes] = {}
    memory: _Bytes | None = None


class _Provenance(Open):
    seed: int
    device: str
    wall_seconds: Amount
    train_steps: Count
    peak_memory_bytes: Count
    replay_bytes: Count
    dictionary_bytes: Count
    method_bytes: Count = 0


class _Distance(Open):
    nearest: Count
    value: Number


class _Length(Open):
    tokens: Annotated[Count, Field(ge=1)]
    quantity: Annotated[str, AfterValidator(_quantity)]
    value: Number
    state_bytes: Count
    distances: list[_Distance]


class _Capacity(_Length):
    capacity: Count


class _Point(Open):
    step: Count
    experience: Count
    values: Annotated[list[Number], Field(min_length=1)]


class _Diverged(BaseModel):
    model_config = ConfigDict(extra="forbid")
    step: Count
    experience: Count
    reason: str


class _Result(BaseModel):
    """See `cl_ovq.runs.result.Result`."""

    model_config = ConfigDict(extra="forbid")
    run_id: str | None
    run_name: str
    matrix: Matrix
    matrices: dict[str, Matrix]
    metrics: dict[str, Number | None]
    dictionary: _Dictionary
    config: _Config
    provenance: _Provenance
    output_dir: str
    artifacts: dict[str, Annotated[str, AfterValidator(_inside)]] = {}
    quantity: Annotated[str, AfterValidator(_quantity)] = "accuracy"
    anytime: list[_Point] = []
    lengths: list[_Length] = []
    capacities: list[_Capacity] = []
    diverged: _Diverged | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Result:
        experiences = len(self.matrix) - 1
        for name, matrix in {"matrix": self.matrix, **self.matrices}.items():
            if [len(row) for row in matrix] != [experiences] * (experiences + 1):
                raise ValueError(f"{name} has not {experiences + 1} rows of {experiences}")
        if any(len(point.values) > experiences for point in self.anytime):
            raise ValueError(f"anytime has values on more than {experiences} experiences")
        return self


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        what: it should hold, for messages.

    Raises:
        UserError: it cannot be read, or is no JSON that could be written again.
    """
    try:
        tree = json.loads(read_regular(path, LARGEST_FILE).decode("utf-8"))
        json.dumps(tree, allow_nan=False).encode()
        if _depth(tree) > DEEPEST:
            raise ValueError("it is nested too deeply")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} does not hold {what}: {str(error).splitlines()[0]}") from error
    return tree


def _depth(tree: Any) -> int:
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [item for part in level for item in _items(part) if isinstance(item, dict | list)]
    return depth


def _items(part: Any) -> Any:
    return part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def check_result(tree: Any, path: Path) -> Mapping[str, Any]:
    """Return plain data that holds the results of a run, with its configuration as it would be stored today.

    Raises:
        UserError: it does not, with the first field that is wrong.
    """
    if isinstance(tree, dict) and isinstance(tree.get("config"), dict):
        tree = tree | {"config": current(tree["config"])}
    return checked(_RESULT, tree, path, "the results of a run")


_RESULT: TypeAdapter[Any] = TypeAdapter(_Result)


def checked(kind: TypeAdapter[Any], tree: Any, path: Path, what: str) -> Any:
    """Return plain data that is of a kind.

    Args:
        kind: what it should be.
        tree: the data.
        path: where it was read, for the message.
        what: it should hold, for the message.

    Raises:
        UserError: it is not.
    """
    try:
        kind.validate_python(tree, strict=True)
    except ValidationError as error:
        raise UserError(f"{path} does not hold {what}: {first_mistake(error)}") from error
    return tree


def first_mistake(error: ValidationError) -> str:
    """Return in words what a schema found first, with the place where it stands."""
    found = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, found["loc"]))
    message = found["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
