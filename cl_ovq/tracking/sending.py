"""Sends a journal to MLflow: in batches, in order, and without saying anything twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_ovq.errors import printable
from cl_ovq.tracking.experiments import KEY_TAG, Gone, find_run, open_experiment
from cl_ovq.tracking.journal import JournalReader, keep_state, state_of
from cl_ovq.tracking.own_files import NotOwnFileError, note_run_id, own_path
from cl_ovq.tracking.records import (
    REFUSED,
    Begun,
    Ended,
    File,
    Input,
    JournalMalformed,
    Metrics,
    Parameters,
    Record,
    Resumed,
    SavedModel,
    Tags,
)
from cl_ovq.tracking.store import StoreDown, creating, open_client, reach
from cl_ovq.uris import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's, of one call
PARENT_TAG = "mlflow.parentRunId"
LAST_TRY_SECONDS = 20.0
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


class Sending:
    """One journal on its way to MLflow.

    What is sent twice is there once: MLflow keeps a point of a metric, a parameter, a file once, a run is found by its
    key, and a run that goes on asks for the points that are there. So the state beside the journal may be behind what
    was sent, as it is where the disk is full, and is never ahead of it.

    Args:
        path: of the journal.
        uri: the store. It is never taken from the journal, which anybody may have written.
        artifacts: where files of a new experiment's runs go; None where a tracking server decides.

    Attributes:
        ending: status and moment (in milliseconds since the epoch) of a run whose end may not be in the journal, since
            the disk was full; None where a run without an end was killed.
        problem: why not all could be sent; None if all was.
        malformed: the same where it can never be.

    Raises:
        JournalBusy: another process sends it.
        JournalMalformed: it is no journal.
        FileNotFoundError: all of it was sent.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, uri: str, artifacts: str | None) -> None:
        self.reader = JournalReader(path)
        try:
            self.state = state_of(path)
            if self.state.run_id is None:  # without its run nothing of a journal was sent
                self.state = self.state.model_copy(update={"offset": 0, "ended": False})
            if self.state.offset > self.reader.written()[0]:
                raise JournalMalformed("the state beside it is beyond its end")
        except JournalMalformed:
            self.reader.close()
            raise
        self.uri, self.artifacts = uri, artifacts
        self.client: MlflowClient | None = None
        self.problem: str | None = None
        self.malformed: JournalMalformed | None = None
        self.ending: tuple[str, int] | None = None
        self._next_try, self._wait, self._final = 0.0, 1.0, False
        self._behind = False  # whether the state on disk is

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, if it has one."""
        return self.state.run_id

    def check(self) -> str | None:
        """Read all of the journal that is to be sent, without sending it; return the store that its run names, if any.

        Raises:
            JournalMalformed: it is no journal.
        """
        first = next(self.reader.all_records(0), None)
        for number, record in enumerate(self.reader.all_records(self.state.offset)):
            if number == 0:
                self._check_first(record)
        return first.uri if isinstance(first, Begun | Resumed) else None

    def advance(self, *, now: bool = False) -> bool:
        """Send what there is, unless the store failed a moment ago; end a run that was killed.

        Args:
            now: whether to try in any case.

        Returns:
            Whether everything written so far was sent.
        """
        if not now and time.monotonic() < self._next_try:
            return False
        try:
            gone = self.reader.abandoned()
            while self._send_some():
                pass
            if gone:
                self._end(*(self.ending or ("KILLED", self.reader.written()[1])))
        except Exception as error:  # a store may fail in every way there is, and the journal is still there
            self.problem = without_secrets(str(error), self.uri) or type(error).__name__
            self.malformed = error if isinstance(error, JournalMalformed) else None
            refused = getattr(error, "error_code", None) in REFUSALS
            self._final = refused or isinstance(error, Gone | JournalMalformed)
            self._next_try, self._wait = time.monotonic() + self._wait, min(60.0, 2 * self._wait)
            return False
        self.problem, self._wait = None, 1.0
        return True

    def finish(self) -> bool:
        """Send the rest, trying for a while where the store is there but busy; remove the journal when all is sent."""
        deadline = time.monotonic() + LAST_TRY_SECONDS
        while not (sent := self.advance(now=True)) and not self._final:
            try:
                reach(self.uri)
            except StoreDown:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if self._behind:
            self._write_state()
        # One that is empty is of a run that was killed before it had begun.
        if sent and (self.state.ended or self.state.run_id is None) and not self._behind:
            with suppress(OSError):  # in a folder that cannot be written to it stays, and is sent once more
                self.reader.remove()
        self.reader.close()
        return sent

    def _send_some(self) -> bool:
        """Send a batch; return whether there was anything."""
        before = self.state.offset
        records = self.reader.records(before)
        if not records:
            return False
        self._check_first(records[0][0])
        metrics: list[Metric] = []
        for record, offset in records:
            if isinstance(record, Metrics):
                metrics += self._metrics(record)
            else:
                self._send_metrics(metrics, before)
                metrics = []
                self._send_one(record, offset)
            if len(metrics) >= LIMITS["metrics"]:
                self._send_metrics(metrics, offset)
                metrics = []
            before = offset
        self._send_metrics(metrics, before)
        return True

    def _end(self, status: str, moment: int) -> None:
        """End the run in MLflow, if nothing has: it was killed, or the disk was full."""
        if self.state.ended or self.state.run_id is None:
            return
        if self._opened().get_run(self._id()).info.status == "RUNNING":
            self._opened().set_terminated(self._id(), status=status, end_time=moment)
        self._keep(self.state.offset, ended=True)

    def _check_first(self, record: Record | None) -> None:
        """Check that it is the run itself that comes first."""
        if self.state.run_id is None and not isinstance(record, Begun):
            raise JournalMalformed("it does not begin with its run")

    def _opened(self) -> MlflowClient:
        """Return a client of the store, in which the run of the state beside the journal is the journal's own."""
        if self.client is None:
            client = open_client(self.uri)
            if self.state.run_id is not None:
                run = client.get_run(self.state.run_id)
                if run.data.tags.get(KEY_TAG) != self.state.key:
                    raise JournalMalformed("the state beside it names another run")
                self._check_there(run)
            self.client = client
        return self.client

    def _keep(self, offset: int, **changes: object) -> None:
        """Note how far everything was sent, and what else has changed."""
        self.state = self.state.model_copy(update={"offset": offset, **changes})
        self._write_state()

    def _write_state(self) -> None:
        try:
            keep_state(self.state, self.reader.path)
            self._behind = False
        except OSError:  # a full disk: what is sent again does no harm
            self._behind = True

    def _refuse(self, reason: str) -> None:
        refused = self.state.refused
        if reason not in refused and len(refused) < REFUSED:
            self._keep(self.state.offset, refused=[*refused, reason])

    def _send_one(self, record: Record | None, offset: int) -> None:
        changes: dict[str, object] = {}
        match record:
            case Begun():
                self._run(record)
            case Resumed():
                changes = self._resume()
            case Parameters():
                self._parameters(record)
            case Tags():
                self._tags(record.values)
            case File():
                self._try("file", lambda: self._file(record))
            case Input():
                self._try("input", lambda: self._input(record))
            case SavedModel():
                self._try("model", lambda: self._model(record))
            case Ended():
                self._opened().set_terminated(self._id(), status=record.status, end_time=record.time)
                changes = {"ended": True}
        self._keep(offset, **changes)

    def _try(self, what: str, call: Callable[[], object]) -> None:
        """Make a call; what cannot be sent for what it is, and not for the moment, is noted and passed over."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except NotOwnFileError as error:
            self._refuse(printable(f"{what}: {error}")[:500])
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self._check_there(self._opened().get_run(self._id()))
            self._refuse(f"{what}: {without_secrets(str(error), self.uri)}"[:500])

    def _check_there(self, run: Run) -> None:
        """Check that it is not the run that is missing.

        Raises:
            Gone: it was deleted.
        """
        if run.info.lifecycle_stage == "deleted":
            raise Gone(
                "the run was deleted in MLflow: restore it with `mlflow runs restore --run-id "
                f"{self._id()}`, or remove {self.reader.path}"
            )

    def _log(self, kind: str, entities: Sequence[Metric | Param | RunTag]) -> None:
        """Log metrics, params or tags in batches; of a batch that MLflow refuses, whatever it takes."""
        from mlflow.exceptions import MlflowException

        for start in range(0, len(entities), LIMITS[kind]):
            batch = entities[start : start + LIMITS[kind]]
            try:
                self._log_batch(kind, batch)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                for one in batch:
                    self._try(f"{kind.removesuffix('s')} '{one.key}'", partial(self._log_batch, kind, [one]))

    def _log_batch(self, kind: str, entities: Sequence[Any]) -> None:
        arguments: dict[str, Any] = {kind: entities}
        self._opened().log_batch(self._id(), **arguments)

    # Each kind of record

    def _run(self, record: Begun) -> None:
        """Make the run, unless an earlier attempt did, and set its tags."""
        if self.state.run_id is None:
            self._make(record)
        # Not as it is made: a tag that MLflow refuses must not cost the run.
        self._tags({name: value for name, value in record.tags.items() if name != KEY_TAG})

    def _make(self, record: Begun) -> None:
        client, quantity = self._opened(), record.tags.get("quantity", "accuracy")
        with creating(self.uri):
            experiment = open_experiment(client, record.experiment, quantity, self.artifacts, self.uri)
        run_id = find_run(client, experiment, self.state.key)
        if run_id is None:
            tags = {name: value for name, value in record.tags.items() if name.startswith("mlflow.")}
            tags[KEY_TAG] = self.state.key
            if record.parent and (parent := find_run(client, experiment, record.parent)):
                tags[PARENT_TAG] = parent
            run = client.create_run(experiment, start_time=record.time, tags=tags, run_name=record.name)
            run_id = run.info.run_id
        self._keep(self.state.offset, run_id=run_id)
        note_run_id(self.reader.path.parent, run_id)

    def _resume(self) -> dict[str, object]:
        """Open the run again; points up to the steps that MLflow has will come again, and are not sent again.

        MLflow is asked for them: a state that could not be written, or a process that was killed, is behind it.
        """
        client = self._opened()
        client.update_run(self._id(), status="RUNNING")
        latest = client.get_run(self._id()).data.to_proto().metrics
        return {"resumed_at": {metric.key: metric.step for metric in latest}, "ended": False}

    def _metrics(self, record: Metrics) -> list[Metric]:
        from mlflow.entities import Metric

        sent = self.state.resumed_at
        return [
            Metric(name, float(value), record.time, record.step)
            for name, value in record.values.items()
            if record.step > sent.get(name, -1)
        ]

    def _send_metrics(self, metrics: list[Metric], offset: int) -> None:
        """Send metrics, which end at `offset` in the journal."""
        self._log("metrics", metrics)
        if offset > self.state.offset:
            self._keep(offset)

    def _parameters(self, record: Parameters) -> None:
        from mlflow.entities import Param

        self._log("params", [Param(name, value) for name, value in record.values.items()])

    def _tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._log("tags", [RunTag(name, value) for name, value in values.items()])

    def _file(self, record: File) -> None:
        try:
            path = own_path(self.reader.path.parent, record.path)
        except NotOwnFileError as error:
            raise NotOwnFileError(f"{record.path} is {error}") from error
        self._opened().log_artifact(self._id(), str(path))

    def _input(self, record: Input) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=record.name,
            digest=record.digest,
            source_type=record.source_type,
            source=json.dumps(record.source),
            profile=json.dumps(record.profile),
        )
        tags = [InputTag("mlflow.data.context", record.context)]
        self._opened().log_inputs(self._id(), datasets=[DatasetInput(data, tags)])

    def _model(self, record: SavedModel) -> None:
        """Register the model, once."""
        from cl_ovq.tracking.models import log_model

        run = self._opened().get_run(self._id())
        if run.outputs is not None and run.outputs.model_outputs:
            return
        try:
            path = own_path(self.reader.path.parent, record.path)
        except NotOwnFileError as error:
            raise NotOwnFileError(f"{record.path} is {error}") from error
        log_model(self.uri, run.info.experiment_id, self._id(), path, record.model_dump())

    def _id(self) -> str:
        assert self.state.run_id is not None, "a journal begins with its run"
        return self.state.run_id
