"""What may stand in a journal and in the state beside it: a schema, since both may have come from somebody else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cl_ovq.errors import printable


class JournalMalformed(Exception):
    """A journal, or the state beside it, holds what no run writes."""


Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=100_000)]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Id = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]
Number = float | Literal["nan", "inf", "-inf"]
Texts = dict[Text, Text]


class _Model(BaseModel):
    # What an older or newer version writes besides is passed over.
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Begun(_Model):
    """A run: the first record of its journal."""

    kind: Literal["run"]
    uri: Text
    experiment: Text
    name: Text
    tags: Texts
    parent: Key | None
    time: Count


class Resumed(_Model):
    """The run goes on in another process."""

    kind: Literal["resume"]
    uri: Text


class Parameters(_Model):
    """Parameters of the run."""

    kind: Literal["parameters"]
    values: Texts


class Tags(_Model):
    """Tags of the run."""

    kind: Literal["tags"]
    values: Texts


class Metrics(_Model):
    """Metrics of one step."""

    kind: Literal["metrics"]
    values: dict[Text, Number]
    step: Count
    time: Count


class File(_Model):
    """A file of the run's folder, to be kept as an artifact."""

    kind: Literal["file"]
    path: Text


class Input(_Model):
    """A data set that the run uses."""

    kind: Literal["input"]
    name: Text
    digest: Text
    source_type: Literal["local"]
    source: dict[str, Any]
    profile: Any
    context: Text


class SavedModel(_Model):
    """A trained model, to be registered."""

    kind: Literal["model"]
    path: Text
    inputs: dict[Literal["images", "vectors", "texts", "task_labels"], list[Annotated[int, Field(ge=-1, lt=2**31)]]]
    outputs: Annotated[int, Field(ge=1, lt=2**31)]


class Ended(_Model):
    """The run has ended."""

    kind: Literal["end"]
    status: Literal["FINISHED", "FAILED", "KILLED"]
    time: Count


Record = Begun | Resumed | Parameters | Tags | Metrics | File | Input | SavedModel | Ended
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
REFUSED = 100  # refusals that a state keeps


class State(_Model):
    """How far a journal was sent. It is as small after a million steps as after one.

    Attributes:
        key: of the run.
        run_id: MLflow's id of the run; None before it has one.
        offset: bytes of the journal that were sent.
        resumed_at: the last step of each metric when the run was resumed: what comes again is not sent again.
        ended: whether MLflow knows that the run has ended.
        refused: what MLflow refused for good, in words.
        parameters: digest of the parameters that the run began with; empty where an older version wrote the state.
    """

    key: Key
    parameters: Text = ""
    run_id: Id | None = None
    offset: Count = 0
    resumed_at: dict[Text, Count] = Field(default_factory=dict)
    ended: bool = False
    refused: list[Text] = Field(default_factory=list, max_length=REFUSED)


def read_record(line: bytes) -> Record | None:
    """Return the record that a line of a journal holds; None for a line that was cut short.

    Raises:
        JournalMalformed: it is JSON, and no record.
    """
    try:
        return _RECORD.validate_json(line)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] == "json_invalid":
            return None
        raise JournalMalformed(_describe(error)) from error


def read_state(text: bytes) -> State:
    """Return a state.

    Raises:
        JournalMalformed: it is none.
    """
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        raise JournalMalformed(f"the state beside it: {_describe(error)}") from error


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return printable(f"{place}: {first['msg']}" if place else first["msg"])[:300]
