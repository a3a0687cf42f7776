"""An experiment as a table: what was logged, one row a run."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from cl_ovq.cli.app import app
from cl_ovq.errors import UserError
from cl_ovq.tracking import Tracker
from cl_ovq.tracking.export import export_experiment


@pytest.fixture(scope="module")
def logged(store, tmp_path_factory):
    """Two runs, whose metrics differ in kind."""
    for name, values in {"one": {"accuracy": 0.25, "forgetting": np.nan}, "two": {"accuracy": 0.5, "extra": 7}}.items():
        folder = tmp_path_factory.mktemp(name)
        with Tracker(
            folder, uri=store, experiment="exported", run_name=name, tags={"mixer": name}, parameters={"seed": 3}
        ) as tracker:
            tracker.log(values, 1)
    return store


@pytest.mark.parametrize("kind", ["csv", "parquet", "html"])
def test_one_row_a_run(logged, tmp_path, kind):
    file = tmp_path / f"runs.{kind}"
    export_experiment("exported", kind, file, logged)
    if kind == "html":
        rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.split(r"<tr", file.read_text())]
        head, *rows = [row for row in rows if row]
        table = pd.DataFrame(rows, columns=head).replace("", None)
    else:
        table = pd.read_csv(file) if kind == "csv" else pd.read_parquet(file)
    table = table.set_index("run_name").sort_index()
    assert list(table.index) == ["one", "two"]
    assert list(table["metrics.accuracy"].astype(float)) == [0.25, 0.5]
    assert pd.isna(table["metrics.extra"]["one"])
    assert float(table["metrics.extra"]["two"]) == 7
    assert list(table["params.seed"].astype(int)) == [3, 3]
    assert list(table["tags.mixer"]) == ["one", "two"]
    assert list(table["status"]) == ["FINISHED", "FINISHED"]
    assert not any("mlflow." in name for name in table.columns)


def test_csv_goes_to_standard_output(logged):
    done = CliRunner().invoke(app, ["export", "exported", "--csv", "--uri", logged])
    assert done.exit_code == 0
    assert len(pd.read_csv(io.StringIO(done.stdout))) == 2


def test_killed_runs_and_those_above_others_are_left_out_unless_asked_for(store, tmp_path):
    def run(name, parent=None, status="FINISHED"):
        tags = {} if parent is None else {"mlflow.parentRunId": parent}
        found = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        client.log_metric(found, "only_of_parents" if name == "sweep" else "accuracy", 0.5)
        if status != "RUNNING":
            client.set_terminated(found, status)
        return found

    client = MlflowClient(store)
    experiment = client.create_experiment("with parents")
    sweep = run("sweep")
    for name, status in {"good": "FINISHED", "diverged": "FAILED", "killed": "KILLED", "alive": "RUNNING"}.items():
        run(name, sweep, status)
    done = CliRunner().invoke(app, ["export", "with parents", "--csv", "--uri", store])
    table = pd.read_csv(io.StringIO(done.stdout))
    assert sorted(table["run_name"]) == ["diverged", "good"]
    assert "metrics.only_of_parents" not in table
    assert "left out: 2 killed or not ended, 1 above others (--all)" in done.stderr
    done = CliRunner().invoke(app, ["export", "with parents", "--csv", "--uri", store, "--all"])
    assert sorted(pd.read_csv(io.StringIO(done.stdout))["run_name"]) == ["alive", "diverged", "good", "killed", "sweep"]
    assert done.stderr == ""


@pytest.mark.parametrize("options", [(), ("--all",)])
def test_an_experiment_without_runs_is_an_empty_table(store, options):
    name = f"empty {len(options)}"
    MlflowClient(store).create_experiment(name)
    done = CliRunner().invoke(app, ["export", name, "--csv", "--uri", store, *options])
    assert done.exit_code == 0
    assert done.stdout.strip() in ("", '""')


def test_mistakes(logged, tmp_path):
    with pytest.raises(UserError, match="unknown experiment 'exprted': did you mean 'exported'"):
        export_experiment("exprted", "csv", None, logged)
    with pytest.raises(UserError, match="give a file with --output"):
        export_experiment("exported", "parquet", None, logged)
    with pytest.raises(UserError, match="cannot write"):
        export_experiment("exported", "csv", tmp_path / "no" / "such", logged)
    done = CliRunner().invoke(app, ["export", "exported", "--csv", "--html", "--uri", logged])
    assert isinstance(done.exception, UserError)
