"""`cl-ovq ui`: what it refuses, and what it finds. The page itself is in `test_browser.py`."""

import base64
import json
import socket
import urllib.error
import urllib.request
import zlib
from contextlib import chdir
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cl_ovq.cli import ui
from cl_ovq.errors import UserError
from cl_ovq.runs.find import find_run, runs_of
from cl_ovq.tracking import Tracker
from cl_ovq.tracking.view import COMPARED, view_tags

from .conftest import serving


@pytest.fixture(scope="module")
def named(store, tmp_path_factory):
    """Three runs of one experiment, and one that only holds aggregates, by name."""
    ids = {}
    for name in ("first", "second", "third", "group"):
        folder = tmp_path_factory.mktemp(name)
        tags = {"seeds": 3} if name == "group" else {}
        with Tracker(folder, uri=store, experiment="interface", run_name=name, tags=tags, parameters={}) as tracker:
            ids[name] = tracker.run_id
    return MlflowClient(tracking_uri=store), ids, folder


def test_latest_runs_are_those_of_the_last_experiment_without_aggregates(named):
    client, ids, _ = named
    assert {run.info.run_id for run in ui.latest_runs(client)} == {ids["first"], ids["second"], ids["third"]}


def test_runs_are_found_by_id_name_and_directory(named, tmp_path):
    client, ids, _ = named
    shipped = json.loads((Path(__file__).parents[3] / "docs/results/quickstart_stream.json").read_text())["runs"][0]
    (tmp_path / "results.json").write_text(json.dumps(shipped | {"run_id": ids["second"]}))
    for name, wanted in ((ids["first"], "first"), ("third", "third"), (str(tmp_path), "second")):
        assert find_run(client, name).info.run_id == ids[wanted]
    with pytest.raises(UserError, match="unknown run 'thrid': did you mean 'third'"):
        find_run(client, "thrid")


def test_a_sweep_stands_for_its_trials(store, tmp_path):
    def track(name, parent=None):
        options = {"uri": store, "experiment": "swept", "run_name": name, "tags": {}, "parameters": {}}
        (tmp_path / name).mkdir()
        return Tracker(tmp_path / name, parent=parent, **options)

    with track("sweep small") as sweep:
        for name in ("trial 0", "trial 1"):
            with track(name, sweep):
                pass
        with pytest.raises(KeyboardInterrupt), track("trial 2", sweep):
            raise KeyboardInterrupt
        client = MlflowClient(tracking_uri=store)
        assert sweep.run_id
    names = [run.info.run_name for run in runs_of(client, "sweep small")]
    assert sorted(names) == ["trial 0", "trial 1"]  # and not the one that was killed
    assert [run.info.run_name for run in runs_of(client, "trial 2")] == ["trial 2"]


def test_nothing_to_show(tmp_path):
    with chdir(tmp_path), pytest.raises(UserError, match=r"no runs under .*: run an experiment first"):
        ui.serve([], port=5000, uri=None, host="127.0.0.1", browser=False)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < ui.free_port(port) < port + 100


def test_other_machines_need_a_password(monkeypatch):
    monkeypatch.delenv(ui.PASSWORD, raising=False)
    command, environment = ui.server_command("sqlite:////a/b.db", "127.0.0.1", 5000)
    assert "--app-name" not in command
    assert "b.db" not in " ".join(command)  # an address may hold a password, and arguments are seen by everybody
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "sqlite:////a/b.db"
    for host in ("0.0.0.0", "::", "10.0.0.1"):
        with pytest.raises(UserError, match=f"^--host {host}: .*set {ui.PASSWORD}"):
            ui.server_command("sqlite:////a/b.db", host, 5000)
    monkeypatch.setenv(ui.PASSWORD, "a long password")
    command, environment = ui.server_command("sqlite:////a/b.db", "0.0.0.0", 5000)
    assert command[command.index("--app-name") + 1] == "basic-auth"
    assert len(environment[ui.SECRET]) >= 32


def test_password_is_asked_for(monkeypatch, store, tmp_path):
    """A real server with MLflow's passwords turned on refuses who has none."""
    monkeypatch.setenv(ui.PASSWORD, "a long password")
    _, environment = ui.server_command(store, "0.0.0.0", 5000)
    with serving(store, tmp_path, environment | {ui.PASSWORD: "a long password"}, "basic-auth") as address:
        request = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=300)
        assert refused.value.code == 401
        word = base64.b64encode(b"admin:a long password").decode()
        with urllib.request.urlopen(
            urllib.request.Request(request, headers={"Authorization": f"Basic {word}"}), timeout=300
        ) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("quantity", ["accuracy", "bits_per_byte", "squared_error"])
def test_saved_view_fits_into_a_tag_and_names_what_is_logged(quantity):
    tags = view_tags(quantity)
    (view,) = (json.loads(value) for name, value in tags.items() if name.startswith("mlflow.sharedViewState."))
    assert all(len(value) <= 5000 for value in tags.values())  # MLflow's limit
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    columns = {f"metrics.`{quantity if name == 'accuracy' else name}`" for name in COMPARED}
    assert columns <= set(state["selectedColumns"])
    assert ("accuracy" in json.dumps(state)) == (quantity == "accuracy")
    assert {"forgetting", "dictionary/size"} <= {chart.get("metricKey") for chart in state["compareRunCharts"]}
