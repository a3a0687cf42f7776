"""A Ray that is not there, or is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cl_ovq.errors import UserError
from cl_ovq.runs.result import Result
from cl_ovq.sweeps import liveness
from cl_ovq.sweeps.records import DONE, read_records

ROOT = Path(__file__).resolve().parents[3]


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
