"""Sends a journal to MLflow: in batches, in order, and without saying anything twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_ovq.addresses import without_secrets
from cl_ovq.tracking.journal import JournalReader, State
from cl_ovq.tracking.store import StoreDown, creating, open_client, reach

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

READING = 1 << 20  # bytes of the journal at a time
METRICS = 1000  # MLflow's limits of one call
PARAMETERS = 100
KEY_TAG = "cl_ovq.key"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
LAST_TRY_SECONDS = 20.0
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")


class Sending:
    """One journal on its way to MLflow.

    Args:
        path: of the journal.
        uri: the store; a password may be in it, which is why it is not taken from the journal.

    Raises:
        JournalBusy: another process sends it.
        FileNotFoundError: all of it was sent.
    """

    def __init__(self, path: Path, uri: str) -> None:
        self.reader = JournalReader(path)
        self.state = State.read(path)
        self.uri = uri
        self.client: MlflowClient | None = None
        self.problem: str | None = None
        self._next_try, self._wait = 0.0, 1.0

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, if it has one."""
        return self.state.run_id

    def advance(self, *, now: bool = False) -> bool:
        """Send what there is, unless the store failed a moment ago.

        Args:
            now: whether to try in any case.

        Returns:
            Whether everything written so far was sent.
        """
        if not now and time.monotonic() < self._next_try:
            return False
        try:
            while self._send_some():
                pass
        except Exception as error:  # a store may fail in every way there is, and the journal is still there
            self.problem = without_secrets(str(error), self.uri) or type(error).__name__
            self._next_try, self._wait = time.monotonic() + self._wait, min(60.0, 2 * self._wait)
            return False
        self.problem, self._wait = None, 1.0
        return True

    def finish(self) -> bool:
        """Send the rest, trying for a while where the store is there but busy; remove the journal when all is sent."""
        deadline = time.monotonic() + LAST_TRY_SECONDS
        while not (sent := self.advance(now=True)):
            try:
                reach(self.uri)
            except StoreDown:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if sent and self.state.ended:
            self.reader.remove()
        else:
            self.reader.close()
        return sent

    def end_if_abandoned(self) -> None:
        """Write the end that a run could not write itself: it was killed."""
        if self.state.ended or not self.reader.abandoned():
            return
        rest = self.reader.records(self.state.offset)
        if not any(record["kind"] == "end" for record, _ in rest):
            self.reader.append("end", status="KILLED", time=int(time.time() * 1000))

    def left(self) -> int:
        """Return how many records were not sent."""
        return len(self.reader.records(self.state.offset))

    def _send_some(self) -> bool:
        """Send a batch; return whether there was anything."""
        records = self.reader.records(self.state.offset, limit=READING)
        if not records:
            return False
        if self.client is None:
            self.client = open_client(self.uri)
        metrics: list[Metric] = []
        before = self.state.offset
        for record, offset in records:
            if record["kind"] == "metrics":
                metrics += self._metrics(record)
            else:
                self._send_metrics(metrics, before)
                metrics = []
                self._try(lambda record=record: getattr(self, f"_{record['kind']}")(record))
                self._keep(offset)
            if len(metrics) >= METRICS:
                self._send_metrics(metrics, offset)
                metrics = []
            before = offset
        self._send_metrics(metrics, before)
        return True

    def _keep(self, offset: int) -> None:
        self.state.offset = offset
        self.state.write(self.reader.path)

    def _try(self, call: Any) -> None:
        """Make a call; what MLflow refuses for what it says, and not for the moment, is noted and passed over."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self.state.refused.append(without_secrets(str(error), self.uri)[:500])

    # Each kind of record

    def _nothing(self, record: dict[str, Any]) -> None:
        """Pass over a damaged line."""

    def _run(self, record: dict[str, Any]) -> None:
        """Make the run, unless an earlier attempt did."""
        assert self.client is not None
        if self.state.run_id is not None:
            return
        experiment = self._experiment(
            record["experiment"], record["artifact_location"], record["tags"].get("quantity", "accuracy")
        )
        run_id = self._find(experiment, self.state.key) if self.state.attempted else None
        if run_id is None:
            self.state.attempted = True
            self.state.write(self.reader.path)
            tags = {KEY_TAG: self.state.key, **record["tags"]}
            if record["parent"] and (parent := self._find(experiment, record["parent"])):
                tags[PARENT_TAG] = parent
            run = self.client.create_run(experiment, start_time=record["time"], tags=tags, run_name=record["name"])
            run_id = run.info.run_id
        self.state.run_id, self.state.experiment_id = run_id, experiment
        _note_run_id(self.reader.path.parent, run_id)

    def _experiment(self, name: str, artifact_location: str | None, quantity: str) -> str:
        from cl_ovq.tracking.view import view_tags

        assert self.client is not None
        with creating(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return found.experiment_id
            experiment = self.client.create_experiment(name, artifact_location=artifact_location)
            for tag, value in view_tags(quantity).items():
                self.client.set_experiment_tag(experiment, tag, value)
            return experiment

    def _find(self, experiment: str, key: str) -> str | None:
        assert self.client is not None
        found = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _resume(self, record: dict[str, Any]) -> None:
        """Open the run again; metrics up to the steps that are there will come again, and are not sent again."""
        assert self.client is not None
        self.state.resumed_at, self.state.ended = dict(self.state.last_steps), False
        self.client.update_run(self._id(), status="RUNNING")

    def _metrics(self, record: dict[str, Any]) -> list[Metric]:
        from mlflow.entities import Metric

        step, sent = record["step"], self.state.resumed_at
        return [
            Metric(name, float(value), record["time"], step)
            for name, value in record["values"].items()
            if step > sent.get(name, -1)
        ]

    def _send_metrics(self, metrics: list[Metric], offset: int) -> None:
        """Send metrics, which end at `offset` in the journal."""
        assert self.client is not None
        client = self.client
        for start in range(0, len(metrics), METRICS):
            batch = metrics[start : start + METRICS]
            self._try(lambda batch=batch: client.log_batch(self._id(), metrics=batch))
        for metric in metrics:
            self.state.last_steps[metric.key] = max(metric.step, self.state.last_steps.get(metric.key, -1))
        if offset > self.state.offset:
            self._keep(offset)

    def _parameters(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Param

        assert self.client is not None
        parameters = [Param(name, value) for name, value in record["values"].items()]
        for start in range(0, len(parameters), PARAMETERS):
            self.client.log_batch(self._id(), params=parameters[start : start + PARAMETERS])

    def _tags(self, record: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        assert self.client is not None
        self.client.log_batch(self._id(), tags=[RunTag(name, value) for name, value in record["values"].items()])

    def _file(self, record: dict[str, Any]) -> None:
        assert self.client is not None
        path = self.reader.path.parent / record["path"]
        if path.exists():
            self.client.log_artifact(self._id(), str(path), record["folder"])
        else:
            self.state.refused.append(f"{path} is gone")

    def _input(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        assert self.client is not None
        data = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type=record["source_type"],
            source=json.dumps(record["source"]),
            profile=json.dumps(record["profile"]),
        )
        tags = [InputTag("mlflow.data.context", record["context"])]
        self.client.log_inputs(self._id(), datasets=[DatasetInput(data, tags)])

    def _model(self, record: dict[str, Any]) -> None:
        """Register the model, once."""
        from cl_ovq.tracking.models import log_model

        assert self.client is not None
        run = self.client.get_run(self._id())
        if run.outputs is not None and run.outputs.model_outputs:
            return
        log_model(self.uri, run.info.experiment_id, self._id(), self.reader.path.parent / record["path"], record)

    def _end(self, record: dict[str, Any]) -> None:
        assert self.client is not None
        self.client.set_terminated(self._id(), status=record["status"], end_time=record["time"])
        self.state.ended = True

    def _id(self) -> str:
        assert self.state.run_id is not None, "a journal begins with its run"
        return self.state.run_id


def _note_run_id(directory: Path, run_id: str) -> None:
    """Enter the run's id into results that were written before it was known."""
    from cl_ovq.results import FILE_NAME, write_atomically

    path = directory / FILE_NAME
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("run_id") is None:
            result["run_id"] = run_id
            write_atomically(path, json.dumps(result, indent=2) + "\n")
