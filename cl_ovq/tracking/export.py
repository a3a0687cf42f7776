"""An experiment as a table for those who want pandas: one row a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cl_ovq.errors import UserError, unknown
from cl_ovq.report.table import Table
from cl_ovq.tracking.store import RUNS, StoreDown, open_client

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000
GROUPS = ("metrics.", "params.", "tags.")
CUT = ("KILLED", "RUNNING", "SCHEDULED")  # what they have is no result


def export_experiment(
    experiment: str, kind: str, output: Path | None, uri: str | None, *, every: bool = False
) -> dict[str, int]:
    """Write an experiment as `csv`, `parquet` or `html`, and return how many runs were left out, by reason.

    Args:
        experiment: its name or id.
        kind: of the file.
        output: the file; standard output if None.
        uri: the store; the default one if None.
        every: whether runs that were killed or have not ended are rows too, and those that stand above others: of a
            sweep, or of several seeds.

    Raises:
        UserError: there is no such store or experiment, or the file cannot be written.
    """
    if kind == "parquet" and output is None:
        raise UserError("export: Parquet is a binary format: give a file with --output")
    table, left_out = experiment_table(open_existing(uri), experiment), {}
    if not every and len(table):
        cut, parent = table["status"].isin(CUT), table["run_id"].isin(table["parent"].dropna())
        left_out = {"killed or not ended": int(cut.sum()), "above others": int((parent & ~cut).sum())}
        table = table[~(cut | parent)]
        table = table[[name for name in table if not name.startswith(GROUPS) or table[name].notna().any()]]
    try:
        if kind == "parquet":
            assert output is not None
            table.to_parquet(output, index=False)
            return left_out
        text = table.to_csv(index=False) if kind == "csv" else _printable(table).to_html()
        if output is None:
            sys.stdout.write(text)
        else:
            output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"export: cannot write {output}: {error.strerror}") from error
    return left_out


def open_existing(uri: str | None) -> MlflowClient:
    """Open a store to read it.

    Raises:
        UserError: it is not there, or does not answer.
    """
    if uri is None and not (RUNS / "mlflow.db").exists():
        raise UserError(f"no runs under {RUNS.resolve()}: run an experiment first, e.g. cl-ovq run quickstart")
    try:
        return open_client(uri)
    except StoreDown as error:
        raise UserError(f"uri: {error}") from error


def experiment_table(client: MlflowClient, experiment: str) -> pd.DataFrame:
    """Return the runs of an experiment, the newest first.

    Columns are `run_id`, `run_name`, `status`, `start` and `end` (UTC), `parent`, then `metrics.*` with last values,
    `params.*` and `tags.*`, without MLflow's own tags.

    Raises:
        UserError: there is no such experiment.
    """
    import pandas as pd

    found = client.get_experiment_by_name(experiment)
    experiments = client.search_experiments()
    if found is None and experiment in {each.experiment_id for each in experiments}:
        found = client.get_experiment(experiment)
    if found is None:
        raise unknown("experiment", experiment, [each.name for each in experiments])
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([found.experiment_id], max_results=PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    table = pd.DataFrame([_row(run) for run in runs])
    head = [name for name in table.columns if not name.startswith(GROUPS)]
    rest = [name for group in GROUPS for name in sorted(table.columns) if name.startswith(group)]
    table = table[head + rest]
    for name in ("start", "end"):
        if name in table:
            table[name] = pd.to_datetime(table[name], unit="ms", utc=True)
    return table


def _printable(frame: pd.DataFrame) -> Table:
    table = Table(*map(str, frame.columns))
    for row in frame.astype(object).where(frame.notna(), "").itertuples(index=False):
        table.add(*row)
    return table


def _row(run: Run) -> dict[str, object]:
    return {
        "run_id": run.info.run_id,
        "run_name": run.info.run_name,
        "status": run.info.status,
        "start": run.info.start_time,
        "end": run.info.end_time,
        "parent": run.data.tags.get("mlflow.parentRunId"),
        **{f"metrics.{name}": value for name, value in run.data.metrics.items()},
        **{f"params.{name}": value for name, value in run.data.params.items()},
        **{f"tags.{name}": value for name, value in run.data.tags.items() if not name.startswith("mlflow.")},
    }
