"""Real sweeps from file to MLflow: what ran, what went wrong, what is chosen, what is not repeated, what is secret."""

from __future__ import annotations

import ctypes
import json
import shlex
import socket
import sys
import time
from dataclasses import fields
from pathlib import Path
from urllib.parse import quote

import pytest

import cl_ovq
from cl_ovq import cli
from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.runs.result import Result
from cl_ovq.sweeps import progress
from cl_ovq.sweeps import run as running
from cl_ovq.sweeps.cluster import connected
from cl_ovq.sweeps.outcome import FILE_NAME
from cl_ovq.sweeps.records import DIVERGED, DONE, FAILED, OUT_OF_MEMORY, read_records
from cl_ovq.sweeps.schema import ClusterOptions
from cl_ovq.sweeps.trials import Job
from cl_ovq.tracking import open_client

# One trial that is well, one whose loss is no number, one that raises, and one that asks for terabytes.
SPACE = {
    "dictionary.capacity": {"choice": [24, 100_000_000_000]},
    "model.patch_size": {"choice": [4, 3], "when": {"dictionary.capacity": [24]}},
    "optimizer.learning_rate": {"choice": [1e-2, 1e30], "when": {"model.patch_size": [4]}},
}
SECRETS = ("hu/sh@%1", "k3y-0f-th3-ap1")
WELL, RAISES, LOOPS, HANGS = 24, 25, 26, 27  # slots, by which a trial knows what it is to do
MARK = "begun"  # of trials that hang


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all sweeps of this file, whose workers import the platform once."""
    with connected(ClusterOptions(cpus=3)):
        yield


@pytest.fixture(scope="module")
def broken(sweep_file, start, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    settings = {"evaluation.dictionary_every": 100, "tracking.enabled": True, "tracking.uri": store}
    path = sweep_file(space=SPACE, selection={"test_seeds": 1}, set=settings, budget={"concurrency": 1})
    return *start(path, folder / "sweep"), path, folder / "sweep", store


def test_what_goes_wrong_in_a_trial_is_recorded_and_ends_nothing(broken):
    outcome, said, *_ = broken
    found = {record.trial: record.status for record in outcome.records}
    assert found == {0: DONE, 1: DIVERGED, 2: FAILED, 3: OUT_OF_MEMORY}
    diverged, raised, memory = (outcome.records[i].error for i in (1, 2, 3))
    assert "loss is" in diverged
    assert "patch_size" in raised
    assert "memory" in memory
    assert all(f"trial {number}" in said for number in found)
    assert len({record.node for record in outcome.records}) == 1  # its worker is not lost


def test_the_best_is_chosen_on_validation_data_and_tested_once_on_fresh_seeds(broken):
    outcome, _, _, folder, _ = broken
    assert outcome.best.trial == 0
    trial = Result.read(folder / "trials" / "0000" / "seed_100")
    assert trial.config["evaluation"]["split"] == "validation"
    assert outcome.best.values == {"accuracy": trial.metrics["accuracy"]}
    tests = [Result.read(path) for path in folder.glob("test/*")]
    assert [(test.config["seed"], test.config["evaluation"]["split"]) for test in tests] == [(0, "test")]
    assert outcome.test_metrics()["accuracy"].mean == tests[0].metrics["accuracy"]
    results = json.loads((folder / FILE_NAME).read_text())
    assert results["counts"] == {DONE: 1, DIVERGED: 1, FAILED: 1, OUT_OF_MEMORY: 1}
    assert results["best"]["validation"] == outcome.best.values


def test_the_command_is_that_of_the_best_run(broken):
    outcome, _, _, folder, _ = broken
    program, verb, experiment, *overrides = shlex.split(outcome.command(outcome.best))
    assert (program, verb) == ("cl-ovq", "run")
    again = load_config(experiment, overrides)
    config = Result.read(folder / "trials" / "0000" / "seed_100").config
    for section in ("model", "dictionary", "strategy", "optimizer", "evaluation"):
        assert vars(getattr(again, section)) == config[section]
    assert (again.seed, again.threads) == (config["seed"], config["threads"])


def test_mlflow_holds_the_sweep_as_parent_of_its_trials(broken):
    outcome, _, _, _, store = broken
    client = open_client(store)
    parent = client.get_run(outcome.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/accuracy"] == outcome.best.values["accuracy"]
    assert parent.data.tags["command"] == outcome.command(outcome.best)
    assert outcome.command(outcome.best) in parent.data.tags["mlflow.note.content"]
    files = {file.path for file in client.list_artifacts(outcome.run_id)}
    assert {FILE_NAME, "trials.md", "trials.tex", "trials.csv", "parameters.png"} <= files
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{outcome.run_id}'", max_results=100
    )
    by_trial = {run.data.tags["trial"]: run for run in children}
    assert set(by_trial) == {"0", "1", "test"}  # the other two failed before there was a run
    assert by_trial["0"].info.status == "FINISHED"
    assert "the loss is" in by_trial["1"].data.tags["diverged"]
    history = client.get_metric_history(by_trial["0"].info.run_id, "accuracy")
    assert [entry.step for entry in history] == [0, 1, 2]
    assert {run.data.tags["sweep"] for run in children} == {"small"}


def test_a_sweep_that_has_ended_runs_nothing_when_it_goes_on(broken, start):
    outcome, _, path, folder, _ = broken
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("results.json")}
    again, _ = start(path, folder, resume=True)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("results.json")} == before
    assert again.best == outcome.best
    assert read_records(folder) == {record.trial: record for record in again.records}


@pytest.mark.slow
def test_from_python_it_is_the_same_sweep(sweep_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = sweep_file(space={"optimizer.learning_rate": {"choice": [1e-3, 1e-2]}}, selection={"test_seeds": 1})
    outcome = cl_ovq.sweep(path, {"strategy.batch_size": 40, "title": "From Python"}, quiet=True)
    assert [record.status for record in outcome.records] == [DONE, DONE]
    assert outcome.directory == tmp_path / "runs" / "sweeps" / outcome.sweep.name
    trials = [cl_ovq.load(folder) for folder in sorted(outcome.directory.glob("trials/*/seed_100"))]
    assert [trial.config["strategy"]["batch_size"] for trial in trials] == [40, 40]
    found = {trial.config["optimizer"]["learning_rate"]: trial.metrics["accuracy"] for trial in trials}
    assert {record.point["optimizer.learning_rate"]: record.values["accuracy"] for record in outcome.records} == found
    assert outcome.best.values["accuracy"] == max(found.values())
    assert outcome.front == [outcome.best]
    (test,) = [cl_ovq.load(folder) for folder in outcome.directory.glob("test/*")]
    assert outcome.test_metrics()["accuracy"].mean == test.metrics["accuracy"]
    with pytest.raises(cl_ovq.UserError, match="--resume"):
        cl_ovq.sweep(path, {"title": "Another"}, quiet=True)
    again = cl_ovq.sweep(path, {"strategy.batch_size": 40, "title": "From Python"}, resume=True, quiet=True)
    assert [record.left for record in again.records] == [record.left for record in outcome.records]  # none ran again


@pytest.mark.slow
def test_a_sweep_that_failed_before_its_first_trial_leaves_nothing_in_the_way(sweep_file, start, tmp_path):
    path = sweep_file(space={"strategy.batch_size": {"choice": [8]}})
    stream = ("stream.name=features", "model.name=pixels")
    for name in ("first.csv", "second.csv"):  # the second is not told that it is another one, or to resume
        with pytest.raises(UserError, match=name):
            start(path, tmp_path / "sweep", *stream, f"stream.data={name}")


def test_a_directory_with_a_sweep_is_not_taken_for_another(broken, start):
    _, _, path, folder, _ = broken
    with pytest.raises(UserError, match="already contains a sweep: add --resume"):
        start(path, folder)
    with pytest.raises(UserError, match="is a different one: settings was"):
        start(path, folder, "strategy.epochs=2", resume=True)
    with pytest.raises(UserError, match="there is no sweep in"):
        start(path, folder / "nowhere", resume=True)


class Faulty(Job):
    """What trials share, of which some have a fault in their code."""

    def run(self, config, *more):
        """Run as always, or do what the number of slots says."""
        if config.dictionary.capacity == RAISES:
            raise RuntimeError("the roof is on fire")
        if config.dictionary.capacity in (LOOPS, HANGS):
            Path(config.output_dir).mkdir(parents=True)
            (Path(config.output_dir) / MARK).touch()
        while config.dictionary.capacity == LOOPS:
            time.sleep(0.1)  # in Python
        if config.dictionary.capacity == HANGS:
            ctypes.PyDLL(None).sleep(3600)  # in native code that keeps the interpreter: no thread, no signal handler
        return super().run(config, *more)


class Clock:
    """A clock that goes hours ahead when all trials but two have ended, and these two hang."""

    def __init__(self, folder):
        self.folder = folder

    def monotonic(self):
        """Return seconds."""
        hang = len(list(self.folder.glob(f"trials/*/*/{MARK}"))) == 2
        return time.monotonic() + (
            10_000 if hang and sum(r.ended for r in read_records(self.folder).values()) > 1 else 0
        )


@pytest.fixture
def faulty(monkeypatch):
    """Make trials `Faulty`."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    make = running._job
    monkeypatch.setattr(
        running,
        "_job",
        lambda *args: Faulty(**{field.name: getattr(make(*args), field.name) for field in fields(Job)}),
    )
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
def test_trials_that_raise_or_run_over_are_failed_and_the_sweep_goes_on(
    faulty, sweep_file, start, tmp_path, monkeypatch
):
    monkeypatch.setattr(progress, "time", Clock(tmp_path / "sweep"))
    space = {"dictionary.capacity": {"choice": [LOOPS, RAISES, HANGS, WELL]}}
    path = sweep_file(space=space, budget={"trial_minutes": 60})
    outcome, said = start(path, tmp_path / "sweep")
    records = {record.point["dictionary.capacity"]: record for record in outcome.records}
    assert {slots: record.status for slots, record in records.items()} == {
        LOOPS: FAILED,
        HANGS: FAILED,
        RAISES: FAILED,
        WELL: DONE,
    }
    assert records[RAISES].error == "RuntimeError: the roof is on fire"
    for slots in (LOOPS, HANGS):
        assert records[slots].error == "it ran for more than budget.trial_minutes=60"
        assert records[slots].deaths == 0  # and was not tried again
    assert "trial 2 failed: it ran for more than budget.trial_minutes=60" in said
    assert outcome.interrupted is None
    assert outcome.best.point == {"dictionary.capacity": WELL}
    assert {record.trial: record for record in outcome.records} == read_records(tmp_path / "sweep")
    again, _ = start(path, tmp_path / "sweep", resume=True)  # nothing is missing
    assert again.records == outcome.records


def test_a_sweep_keeps_its_secrets(sweep_file, tmp_path, monkeypatch, capfd):
    """Its server is down, so that all that MLflow would be told is in journals."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = quote(SECRETS[0], safe="")
    uri = f"http://me:{user}@127.0.0.1:{port}/path?api_key={SECRETS[1]}"
    path = sweep_file(
        set={"tracking.enabled": True, "tracking.uri": uri, "evaluation.dictionary_every": 100},
        space={"optimizer.learning_rate": {"choice": [1e-2]}},
        selection={"test_seeds": 1},
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cl-ovq", "sweep", str(path), f"tracking.uri={uri}", "--directory", "kept"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    said = "".join(capfd.readouterr())
    wanted = [*SECRETS, user]
    assert "again: cl-ovq run" in said
    assert not [secret for secret in wanted if secret in said]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"sweep.json", "sweep_results.json", "results.json", "config.yaml"} <= {file.name for file in files}
    assert any(file.suffix == ".jsonl" for file in files)
    leaks = {str(file) for file in files for secret in wanted if secret.encode() in file.read_bytes()}
    assert leaks == set()


@pytest.mark.slow
def test_a_run_that_is_done_is_taken_from_the_store_if_asked(broken, sweep_file, start, tmp_path):
    outcome, _, _, folder, _ = broken
    space = {"optimizer.learning_rate": {"choice": [1e-2, 2e-2]}, "dictionary.capacity": {"choice": [24]}}
    again, _ = start(sweep_file(space=space, reuse=str(folder)), tmp_path)
    assert [record.runs[0]["reused"] for record in again.records] == [True, False]
    assert again.records[0].values == outcome.best.values
