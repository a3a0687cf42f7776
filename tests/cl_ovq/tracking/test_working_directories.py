"""The default store and its address in working directories of any name."""

import contextlib
import urllib.request

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from cl_ovq.cli import ui
from cl_ovq.tracking import StoreCheck, artifact_location, open_client
from cl_ovq.tracking.export import export_experiment
from cl_ovq.tracking.store import absolute_uri, default_uri, sqlite_path, sqlite_uri
from cl_ovq.tracking.sync import sync

from .conftest import free_port, serving

ODD = "a b?c=d#e%20f&g;h'i+j"
QUICK = ("stream.experiences=1", "model.name=pixels", "model.head=memory", "memory.capacity=50", "strategy.name=naive")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), min_size=1, max_size=3))
def test_an_address_leads_to_its_file(steps):
    from pathlib import Path

    path = Path("/", *steps)
    address = sqlite_uri(path)
    assert sqlite_path(address) == path
    assert make_url(address).database == str(path)  # what SQLAlchemy opens
    assert not dict(make_url(address).query)


def test_addresses_that_people_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_uri("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert absolute_uri("sqlite:///~/a.db") == "sqlite:////home/me/a.db"
    assert absolute_uri("sqlite:////x/a%20b.db?timeout=60") == "sqlite:////x/a b.db?timeout=60"
    assert sqlite_path(absolute_uri("sqlite:////x/a%3Fb.db")).name == "a?b.db"


@pytest.fixture(scope="module")
def odd(run_in, tiny, tmp_path_factory):
    """A working directory of an odd name with a tracked run in it, and one that could not be sent."""
    folder = tmp_path_factory.mktemp("odd") / ODD
    folder.mkdir()
    result = run_in(folder, tiny(*QUICK, "tracking.enabled=true", "tracking.experiment=odd"))
    down = f"tracking.uri=http://127.0.0.1:{free_port()}"
    run_in(folder, tiny(*QUICK, "tracking.enabled=true", "tracking.experiment=odd", "seed=1", down, "output_dir=kept"))
    return folder, result


def test_a_run_a_sync_and_an_export(odd):
    folder, result = odd
    with contextlib.chdir(folder):
        (found,) = sync(folder / "kept", default_uri(), anyway=True)
        assert (found.outcome, found.reason) == ("sent", None)
        client = open_client(None)
        run = client.get_run(result.run_id)
        assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", result.metrics["accuracy"])
        assert "results.json" in {file.path for file in client.list_artifacts(result.run_id)}
        export_experiment("odd", "csv", folder / "t.csv", None)
    assert set(pd.read_csv(folder / "t.csv")["run_id"]) == {result.run_id, found.run_id}
    assert {path.name for path in folder.parent.iterdir()} == {ODD}
    assert {path.name for path in folder.iterdir()} == {"runs", "kept", "t.csv"}
    assert (folder / "runs" / "mlflow.db").exists()


def test_the_user_interface_serves_it(odd, tmp_path):
    folder, result = odd
    with contextlib.chdir(folder):
        _, environment = ui.server_command(absolute_uri(None), "127.0.0.1", 5000)
        location = artifact_location(None)
    assert environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == location
    with serving(environment["MLFLOW_BACKEND_STORE_URI"], tmp_path, environment) as address:
        for path in (
            f"/api/2.0/mlflow/runs/get?run_id={result.run_id}",
            f"/get-artifact?path=results.json&run_uuid={result.run_id}",
        ):
            with urllib.request.urlopen(address + path, timeout=300) as answer:
                assert answer.status == 200
                assert b"accuracy" in answer.read()
    assert {path.name for path in folder.parent.iterdir()} == {ODD}


@pytest.mark.parametrize("name", ["a b", "a?b", "a#b", "a%20b", "a%b"])
def test_each_name_alone(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert StoreCheck(None).wait() is None
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "runs" / "mlflow.db").exists()
