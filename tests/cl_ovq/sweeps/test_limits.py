"""Trials that raise, and that run for too long, on a real Ray; and a Ray that is gone."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from cl_ovq.errors import UserError
from cl_ovq.runs.result import Result
from cl_ovq.sweeps import liveness, progress
from cl_ovq.sweeps import run as running
from cl_ovq.sweeps.records import DONE, FAILED, read_records
from cl_ovq.sweeps.trials import Job

ROOT = Path(__file__).resolve().parents[3]
WELL, RAISES, LOOPS, HANGS = 24, 25, 26, 27  # slots, by which a trial knows what it is to do
MARK = "begun"  # of trials that hang


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
            pass
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


def test_trials_that_raise_or_run_over_are_failed_and_the_sweep_goes_on(
    faulty, sweep_file, start, tmp_path, monkeypatch
):
    monkeypatch.setattr(progress, "time", Clock(tmp_path / "sweep"))
    space = {"dictionary.capacity": {"choice": [LOOPS, RAISES, HANGS, WELL]}}
    path = sweep_file(space=space, cluster={"cpus": 3}, budget={"trial_minutes": 60})
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


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_answers_is_one_line_at_once(sweep_file, start, tmp_path, address):
    with socket.socket() as listener:  # a port that is free, and stays so
        listener.bind(("127.0.0.1", 0))
        address = address.format(listener.getsockname()[1])
        with pytest.raises(UserError, match=r"no Ray cluster answers at '127.0.0.1:\d+'.* go on with --resume"):
            start(sweep_file(), tmp_path / "sweep", f"cluster.address={address}", "cluster.cpus=null")


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("head", None),
        ("head:port", None),
        ("http://[::1", None),
    ],
)
def test_endpoints(address, endpoint):
    assert liveness.endpoint_of(address) == endpoint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_killed_ray_is_one_line_and_nothing_is_lost(sweep_file, start, tmp_path, name):
    settings = {"tracking.enabled": False, "evaluation.dictionary_every": 100, "stream.experiences": 5}
    path, folder = sweep_file(set=settings | {"strategy.epochs": 20}, cluster={"cpus": 1}), tmp_path / "sweep"
    driver = subprocess.Popen(
        [sys.executable, "-c", "from cl_ovq.cli import main; main()", "sweep", path, "--directory", folder],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not (folder / "trials" / "0001" / "seed_100" / "checkpoint.bin").exists():  # the first trial has ended
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (victim,) = [child for child in psutil.Process(driver.pid).children(recursive=True) if child.name() == name]
    victim.kill()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 2
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith("error: Ray is gone")
    assert line.endswith("go on with --resume")
    assert "Traceback" not in said
    statuses = {number: record.status for number, record in read_records(folder).items()}
    assert statuses == {0: DONE, 1: "running"}
    results = folder / "trials" / "0000" / "seed_100" / "results.json"
    before = results.stat().st_mtime_ns
    outcome, _ = start(path, folder, resume=True)
    assert [record.status for record in outcome.records] == [DONE, DONE]
    assert results.stat().st_mtime_ns == before
    assert Result.read(folder / "trials" / "0001" / "seed_100").metrics["accuracy"] is not None
