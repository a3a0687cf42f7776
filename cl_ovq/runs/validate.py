"""Results of runs that were read from a file, whoever wrote it: checked before anything is made of them.

What is checked are the types of the fields of `Result`. What these do not name is kept as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from cl_ovq.config.parts import current, default_of
from cl_ovq.errors import UserError
from cl_ovq.evaluation.records import LARGEST, Count
from cl_ovq.paths import read_regular
from cl_ovq.runs.result import VERSION, Result

LARGEST_FILE = 1 << 29  # bytes: a matrix of 3000 experiences, and as much of everything else
DEEPEST = 60
RENAMED = {"census": "slot_statistics"}  # fields of the dictionary, as older results call them


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


def _consistent(result: Any) -> Any:
    experiences = len(result.matrix) - 1
    for name, matrix in {"matrix": result.matrix, **result.matrices}.items():
        if [len(row) for row in matrix] != [experiences] * (experiences + 1):
            raise ValueError(f"{name} must have {experiences + 1} rows of {experiences}")
    if any(len(point["values"]) > experiences for point in result.anytime):
        raise ValueError(f"anytime has values on more than {experiences} experiences")
    if result.experiences and len(result.experiences) != experiences:
        raise ValueError(f"experiences has length {len(result.experiences)} instead of {experiences}")
    return result


def _adapter() -> TypeAdapter[Any]:
    """Return what checks plain data against the fields of `Result`, of whose configuration it knows more."""
    hints = get_type_hints(Result, include_extras=True) | {"config": _Config}
    expected: dict[str, Any] = {}
    for field in fields(Result):
        default = default_of(field)
        expected[field.name] = (hints[field.name], ... if default is MISSING else default)
    model = create_model("Result", __config__=ConfigDict(extra="forbid"), **expected)
    consistent: Any = Annotated[model, AfterValidator(_consistent)]
    return TypeAdapter(consistent)


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
        raise UserError(f"{path} does not contain {what}: {str(error).splitlines()[0]}") from error
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
        UserError: it does not, with the first field that is wrong; or it is of a later version than this program.
    """
    if isinstance(tree, dict):
        version = tree.get("version", 1)
        if type(version) is int and version > VERSION:
            raise UserError(
                f"{path} contains results of version {version}, but this program reads only versions up to {VERSION}: "
                "read it with the version that wrote it, or a later one"
            )
        if isinstance(tree.get("config"), dict):
            tree = tree | {"config": current(tree["config"])}
        if isinstance(found := tree.get("dictionary"), dict):
            tree = tree | {"dictionary": {RENAMED.get(name, name): value for name, value in found.items()}}
    return checked(_RESULT, tree, path, "the results of a run") | {"version": VERSION}


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
        raise UserError(f"{path} does not contain {what}: {first_mistake(error)}") from error
    return tree


def first_mistake(error: ValidationError) -> str:
    """Return in words what a schema found first, with the place where it stands."""
    found = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, found["loc"]))
    message = found["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


_RESULT = _adapter()
