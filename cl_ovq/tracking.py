"""MLflow: where runs are kept and compared."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cl_ovq.config.load import flatten
from cl_ovq.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

RUNS = Path("runs")
BATCH = 1000  # MLflow's limit of metrics per call
PARAMETER_BATCH = 100


def default_uri() -> str:
    """Return the store that is used when none is configured: a SQLite file under `runs/` in the working directory."""
    return f"sqlite:///{RUNS.resolve() / 'mlflow.db'}"


def open_client(uri: str | None) -> MlflowClient:
    """Return a client of a store, creating the default one where it is missing.

    Raises:
        UserError: the store cannot be opened.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # where the result goes, and nothing else
    import logging

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # schema migrations of a new store, one line each
    try:
        if uri is None:
            RUNS.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=uri or default_uri())
        with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="20"):
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"tracking.uri: cannot open the store '{uri or default_uri()}': {reason}") from error
    return client


def artifact_location(uri: str | None) -> str | None:
    """Return where the artifacts of a store's runs go: beside a SQLite file; None where a server decides.

    Left to itself, MLflow puts them into the working directory, where nobody who opens the store later finds them.
    """
    prefix = "sqlite:///"
    store = uri or default_uri()
    if not store.startswith(prefix):
        return None
    return (Path(store.removeprefix(prefix)).resolve().parent / "mlartifacts").as_uri()


class Tracker:
    """One MLflow run, open for as long as the `with` block.

    Leaving the block marks the run FINISHED, FAILED after an exception, or KILLED after Ctrl-C. Metrics are collected
    and sent in batches (`flush`), since a call costs milliseconds whatever it carries.

    Args:
        uri: tracking server or store; the default SQLite store if None.
        experiment: MLflow experiment; created where it is missing.
        run_name: name of the run.
        tags: tags of the run.
        parameters: nested configuration; its leaves become parameters with dotted names.
    """

    def __init__(
        self,
        *,
        uri: str | None,
        experiment: str,
        run_name: str,
        tags: Mapping[str, Any],
        parameters: Mapping[str, Any],
    ) -> None:
        self.client = open_client(uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            experiment_id = self.client.create_experiment(experiment, artifact_location=artifact_location(uri))
        else:
            experiment_id = found.experiment_id
        run = self.client.create_run(
            experiment_id, run_name=run_name, tags={name: str(value) for name, value in tags.items()}
        )
        self.run_id: str = run.info.run_id
        self._metrics: list[Metric] = []
        try:
            self._log_parameters(flatten(parameters))
        except BaseException:
            self.client.set_terminated(self.run_id, status="FAILED")
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        try:
            self.flush()
        finally:
            self.client.set_terminated(self.run_id, status=status)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep metrics of one step until the next flush."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [Metric(name, float(value), now, step) for name, value in values.items()]
        if len(self._metrics) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what was kept."""
        while self._metrics:
            batch, self._metrics = self._metrics[:BATCH], self._metrics[BATCH:]
            self.client.log_batch(self.run_id, metrics=batch)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a file as an artifact of the run."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def _log_parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, str(value)) for name, value in values.items()]
        for start in range(0, len(parameters), PARAMETER_BATCH):
            self.client.log_batch(self.run_id, params=parameters[start : start + PARAMETER_BATCH])


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables that are not set, for a while."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
