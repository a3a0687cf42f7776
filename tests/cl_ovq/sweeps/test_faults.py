"""Sweeps under fire, with real processes: killed trials, killed drivers, lost nodes, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cl_ovq.runs.checkpoints import read_checkpoint
from cl_ovq.runs.result import Result
from cl_ovq.sweeps.outcome import FILE_NAME
from cl_ovq.sweeps.records import DONE, STOPPED, read_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
# Five experiences, long enough to be hit in the middle.
LONGER = {
    "tracking.enabled": False,
    "evaluation.dictionary_every": 100,
    "stream.experiences": 5,
    "strategy.epochs": 4,
}


@pytest.fixture(scope="module")
def undisturbed(sweep_file, start, tmp_path_factory):
    """The sweep that others are compared with: its file, and its directory."""
    path, folder = sweep_file(set=LONGER), tmp_path_factory.mktemp("undisturbed") / "sweep"
    outcome, _ = start(path, folder)
    assert [record.status for record in outcome.records] == [DONE, DONE]
    return path, folder


def same(a, b):
    """Compare two values of checkpoints bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "numpy"):
        return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b


def assert_same_runs(folder, other, trials=(0, 1)):
    for trial in trials:
        name = Path("trials", f"{trial:04d}", "seed_100")
        a, b = Result.read(folder / name), Result.read(other / name)
        assert (a.matrix, a.matrices, a.metrics) == (b.matrix, b.matrices, b.metrics)
        states = [read_checkpoint(where / name / "checkpoint.bin")["state"] for where in (folder, other)]
        assert same(*({key: value for key, value in state.items() if key != "cuda"} for state in states))


def wait_for(found, seconds=600):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (value := found()) is not None:
            return value
        time.sleep(0.05)
    pytest.fail("nothing happened")


def workers(process):
    """Return the processes below one that run trials; Ray's own agents must live, or its node dies with them."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(child.cmdline()).startswith(("ray::ImplicitFunc", "ray::run_trial")):
                found.append(child)
    return found


def after_experience(folder, trial, number):
    """Return whether a trial has a checkpoint after so many experiences, and has not ended."""
    path = folder / "trials" / f"{trial:04d}" / "seed_100"
    if not (path / "checkpoint.bin").exists() or (path / "results.json").exists():
        return None
    return path if read_checkpoint(path / "checkpoint.bin")["done"] >= number else None


def test_a_killed_trial_goes_on_and_ends_as_an_undisturbed_one(undisturbed, start, tmp_path):
    path, whole = undisturbed
    killed = []

    def kill():
        wait_for(lambda: after_experience(tmp_path / "sweep", 0, 2))
        record = wait_for(lambda: read_records(tmp_path / "sweep").get(0))
        assert not record.ended
        for worker in workers(psutil.Process()):
            worker.kill()
            killed.append(worker.pid)

    assassin = threading.Thread(target=kill)
    assassin.start()
    outcome, _ = start(path, tmp_path / "sweep")
    assassin.join()
    assert killed
    assert [record.status for record in outcome.records] == [DONE, DONE]
    assert sum(record.deaths for record in outcome.records) == len(killed)
    assert_same_runs(tmp_path / "sweep", whole)


def launch(path, folder, *options):
    command = [sys.executable, "-c", "from cl_ovq.cli import main; main()", "sweep", str(path), "cluster.cpus=1"]
    return subprocess.Popen(
        [*command, "--directory", str(folder), "--json", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_driver_goes_on_and_repeats_nothing(undisturbed, tmp_path):
    path, whole = undisturbed
    folder = tmp_path / "sweep"
    driver = launch(path, folder)
    wait_for(lambda: after_experience(folder, 1, 2))
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    psutil.wait_procs(family, timeout=120)
    assert not [process for process in family if process.is_running()]
    finished = {file: file.stat().st_mtime_ns for file in folder.rglob("results.json")}
    assert len(finished) == 1
    went_on = launch(path, folder, "--resume")
    out, error = went_on.communicate()
    assert went_on.returncode == 0, error
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert json.loads(out)["counts"] == {DONE: 2}
    assert_same_runs(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_what_was_found(undisturbed, tmp_path, number):
    path, _ = undisturbed
    folder = tmp_path / "sweep"
    driver = launch(path, folder)
    wait_for(lambda: after_experience(folder, 1, 1))
    driver.send_signal(number)
    out, error = driver.communicate(timeout=300)
    assert driver.returncode == 130, error
    assert "Traceback" not in error
    found = json.loads(out)
    assert found["interrupted"] == "interrupted"
    assert found["counts"] == {DONE: 1, "running": 1}
    assert found["best"]["trial"] == 0
    assert found == json.loads((folder / FILE_NAME).read_text())


def test_a_lost_node_has_its_trials_moved(undisturbed, start, tmp_path):
    from ray.cluster_utils import Cluster

    path, whole = undisturbed
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    folder = tmp_path / "sweep"

    def lose():
        for trial in (0, 1):
            wait_for(lambda trial=trial: after_experience(folder, trial, 1))
        cluster.remove_node(second, allow_graceful=False)

    thief = threading.Thread(target=lose)
    thief.start()
    try:
        outcome, _ = start(path, folder, f"cluster.address={cluster.address}", "cluster.cpus=null")
    finally:
        thief.join()
        cluster.shutdown()
    assert [record.status for record in outcome.records] == [DONE, DONE]
    assert sum(record.deaths for record in outcome.records) == 1
    assert_same_runs(folder, whole)


def test_trials_that_are_behind_are_stopped_and_the_best_ran_to_its_end(sweep_file, start, tmp_path):
    space = {"optimizer.learning_rate": {"choice": [1e-2, 1e-6, 2e-6, 3e-6]}}
    path = sweep_file(set=LONGER, space=space, scheduler={"name": "asha", "grace": 1, "reduction": 4})
    outcome, _ = start(path, tmp_path / "sweep", "cluster.cpus=1")
    statuses = [record.status for record in outcome.records]
    assert statuses[0] == DONE
    assert STOPPED in statuses
    stopped = [record for record in outcome.records if record.status == STOPPED]
    assert all(record.experiences < 5 for record in stopped)
    assert outcome.best.trial == 0


def test_a_population_exchanges_hyper_parameters_and_goes_on_with_weights(sweep_file, start, tmp_path):
    space = {"optimizer.learning_rate": {"loguniform": [1e-6, 3e-2]}}
    path = sweep_file(
        set=LONGER,
        space=space,
        search={"name": "random", "trials": 4, "seed": 1},
        scheduler={"name": "pbt", "interval": 1, "quantile": 0.5},
    )
    outcome, _ = start(path, tmp_path / "sweep")
    assert [record.status for record in outcome.records] == [DONE] * 4
    assert any(record.points for record in outcome.records)
    for record in outcome.records:
        run = Result.read(tmp_path / "sweep" / "trials" / f"{record.trial:04d}" / "seed_100")
        assert run.config["optimizer"]["learning_rate"] == record.point["optimizer.learning_rate"]


@pytest.mark.parametrize("name", ["tpe", "pareto"])
def test_optuna_searches_and_goes_on(sweep_file, start, tmp_path, name):
    objectives = {"accuracy": "max"} | ({"memory_bytes": "min"} if name == "pareto" else {})
    space = {
        "optimizer.learning_rate": {"loguniform": [1e-3, 3e-2]},
        "dictionary.capacity": {"choice": [12, 24]},
    }
    sections = {"set": {"tracking.enabled": False}, "space": space, "objectives": objectives}
    path = sweep_file(search={"name": name, "trials": 5, "startup": 2}, **sections)
    outcome, _ = start(path, tmp_path / "sweep", "budget.target=0" if name == "tpe" else "title=Pareto")
    if name == "tpe":  # any accuracy is enough: it ends after the first trial, and then goes on
        assert outcome.interrupted == "target reached"
        first = {record.trial: record for record in outcome.records if record.ended}
        outcome, _ = start(path, tmp_path / "sweep", resume=True)
        assert {record.trial: record for record in outcome.records if record.trial in first} == first
    assert sum(record.status == DONE for record in outcome.records) == 5
    assert outcome.interrupted is None
    if name == "pareto":
        assert outcome.front
        assert (tmp_path / "sweep" / "pareto.png").exists()
        assert all(record.values["memory_bytes"] > 0 for record in outcome.records)
    assert set(outcome.importances) == set(space)


def test_a_time_budget_ends_the_sweep_with_what_was_found(undisturbed, start, tmp_path):
    path, _ = undisturbed
    outcome, _ = start(path, tmp_path / "sweep", "budget.minutes=0.001")
    assert outcome.interrupted == "time budget spent"
    assert not any(record.ended for record in outcome.records)
