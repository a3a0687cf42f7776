"""The run on a GPU, without one: what becomes of items that fail, hang or take their process with them, and of wheels.

`make gpu-rehearsal` runs the parts themselves.
"""

import lzma
import os
import subprocess
import sys
import time
import zipfile
from functools import partial

import psutil
import pytest
import torch

from cl_ovq.benchmarks.gpu import __main__ as run
from cl_ovq.benchmarks.gpu import records, running, wheels, worker
from cl_ovq.benchmarks.gpu.correctness import relative_rms
from cl_ovq.benchmarks.gpu.parts import PARTS, Item, Part, Settings
from cl_ovq.benchmarks.gpu.report import report

# A worker whose items are wrong in every way; a letter an item: works, raises, exits, hangs.
WORKER = """
import os, sys, time
from pathlib import Path
from cl_ovq.benchmarks.gpu import worker
from cl_ovq.benchmarks.gpu.parts import Item, Part, Settings
def fail(): raise RuntimeError("no such kernel")
items = [Item("works", lambda: {"right": True}), Item("raises", fail), Item("exits", lambda: os._exit(7)),
         Item("hangs", lambda: time.sleep(60), limit=0.5), Item("last", dict)]
Part.items = lambda self, settings: items
sys.exit(worker.work(Part("probe", 60), Settings(True, 1, Path(sys.argv[1]))))
"""


START = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(rehearsal=True, processes=1, output=tmp_path)


def part_with(monkeypatch, code):
    monkeypatch.setattr(running, "_command", lambda part, settings: [sys.executable, "-c", code, str(settings.output)])
    return Part("probe", seconds=60)


def test_what_an_item_does_costs_itself_alone(monkeypatch, settings):
    part = part_with(monkeypatch, WORKER)
    environment = running.environment_of(settings, {"PYTHONPATH": str(wheels.ROOT)}, PARTS[1])
    assert running.run_part(part, settings, environment, time.monotonic() + 600) == "done"
    found = records.ended(records.read(settings.output / "probe.jsonl"))
    assert {name: row["ok"] for name, row in found.items()} == {
        "works": True,
        "raises": False,
        "exits": False,
        "hangs": False,
        "last": True,
    }
    assert "RuntimeError: no such kernel" in found["raises"]["error"]
    assert found["exits"]["error"] == "its process ended with exit code 7"
    assert found["hangs"]["error"] == "took too long"
    report(settings.output, ["a newer ptxas"], rehearsal=True)
    page = (settings.output / "report.md").read_text()
    assert "5 items, 3 failed, 0 wrong" in page
    assert "no such kernel" in page
    assert "want of a newer ptxas" in page


def test_what_is_cut_off_goes_on_at_the_next_call(monkeypatch, settings):
    """An item that the run's end cut off is no failure: it is done again."""
    slow = WORKER.replace("time.sleep(60), limit=0.5", "time.sleep(60), limit=60")
    environment = running.environment_of(settings, {"PYTHONPATH": str(wheels.ROOT)}, PARTS[1])
    path = settings.output / "probe.jsonl"
    part = part_with(monkeypatch, slow)
    ended = {}
    while "exits" not in ended:
        assert running.run_part(part, settings, environment, time.monotonic() + 6) == "out of time"
        ended = records.ended(records.read(path))
    assert "hangs" not in ended
    assert "last" not in ended
    part = part_with(monkeypatch, slow.replace("time.sleep(60)", "{}"))
    assert running.run_part(part, settings, environment, time.monotonic() + 600) == "done"
    again = records.ended(records.read(path))
    assert again["hangs"]["ok"]
    assert again["works"] == ended["works"]
    assert [row["item"] for row in records.read(path) if "begun" in row].count("works") == 1


def test_an_item_that_was_cut_off_long_ago_is_begun_anew(monkeypatch, settings):
    """Its limit counts from when this call begins it."""
    path = settings.output / "probe.jsonl"
    records.append(path, item="works", begun=time.time() - 1000, limit=5)
    environment = running.environment_of(settings, {"PYTHONPATH": str(wheels.ROOT)}, PARTS[1])
    part = part_with(monkeypatch, WORKER.replace("os._exit(7)", "{}").replace("time.sleep(60)", "{}"))
    assert running.run_part(part, settings, environment, time.monotonic() + 600) == "done"
    assert records.ended(records.read(path))["works"]["ok"]


def test_more_deaths_than_any_limit_leave_the_rest(monkeypatch, settings):
    dying = "*(Item(f'dies {i}', lambda: os._exit(7)) for i in range(10)), Item('last', dict)"
    code = WORKER.replace('Item("last", dict)', dying).replace("time.sleep(60), limit=0.5", "{}")
    part = part_with(monkeypatch, code)
    environment = running.environment_of(settings, {"PYTHONPATH": str(wheels.ROOT)}, PARTS[1])
    assert running.run_part(part, settings, environment, time.monotonic() + 600) == "done"
    assert records.ended(records.read(settings.output / "probe.jsonl"))["last"]["ok"]


def test_a_part_that_cannot_start_says_why(monkeypatch, settings):
    part = part_with(monkeypatch, "import no_such_module")
    assert running.run_part(part, settings, dict(os.environ), time.monotonic() + 600) == "could not start (exit code 1)"
    report(settings.output, [], rehearsal=True)
    assert "No module named 'no_such_module'" in (settings.output / "report.md").read_text()
    run.prepare(part, settings, retry=False)
    assert records.read(settings.output / "probe.jsonl") == []


def runs(pid):
    """Whether there is such a process, and not only what is left of it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


LONG = """
import subprocess
def long():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (Path(sys.argv[1]) / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)
worker.end_with_parent()
items = [Item("long", long, limit=60)]
Part.items =
"""


def test_nothing_goes_on_when_the_run_is_killed(tmp_path):
    """Neither the worker nor what it started."""
    code = WORKER.replace("Part.items =", LONG.strip())
    command = [sys.executable, "-c", START, code, str(tmp_path)]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(wheels.ROOT)})
    pids = tmp_path / "pids"
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    left = [int(pid) for pid in pids.read_text().split()]
    deadline = time.monotonic() + 300
    while any(map(runs, left)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_retry_runs_what_failed_or_was_wrong(monkeypatch, settings):
    outcomes = {"good": True, "bad": False}
    monkeypatch.setattr(
        Part, "items", lambda self, settings: [Item(name, partial(dict, right=outcomes[name])) for name in outcomes]
    )
    part, path = Part("probe", 60), settings.output / "probe.jsonl"
    worker.work(part, settings)
    outcomes["bad"] = True
    run.prepare(part, settings, retry=False)
    assert records.is_done(records.read(path))
    assert not all(map(records.is_right, records.read(path)))
    run.prepare(part, settings, retry=True)
    assert not records.is_done(records.read(path))
    worker.work(part, settings)
    assert all(map(records.is_right, records.read(path)))
    assert [row["item"] for row in records.read(path) if "begun" in row].count("good") == 1


def test_retry_runs_tests_that_failed(settings):
    path = settings.output / "native_tests.jsonl"
    records.append(path, test="a", outcome="passed", seconds=1.0)
    records.append(path, test="b", outcome="failed", seconds=1.0, error="it failed")
    records.append(path, item="pytest", ok=True, seconds=2.0, result={"right": False})
    records.append(path, done=True)
    run.prepare(Part("native_tests", 60), settings, retry=True)
    assert [record.get("test") for record in records.read(path)] == ["a"]


def test_the_end_of_a_line_that_was_being_written_is_dropped(tmp_path):
    path = tmp_path / "probe.jsonl"
    records.append(path, item="a", begun=1.0, limit=5)
    with path.open("a") as file:
        file.write('{"item": "a", "ok": tr')
        file.write("\n5\n[1]\nnot json")
    with path.open("ab") as file:
        file.write(b"\n\xff\xfe")
    records.append(path, done=True)
    assert records.read(path) == [{"item": "a", "begun": 1.0, "limit": 5}, {"done": True}]
    assert records.in_flight(records.read(path)) == "a"


def test_wheels_are_unpacked_where_something_is_lacking(tmp_path, monkeypatch):
    folder, place = tmp_path / "wheels", tmp_path / "place"
    folder.mkdir()
    for name, module in (("absent_here", "absent_here"), ("omegaconf", "omegaconf")):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{module}/__init__.py", "NAME = 'carried'")
    (folder / wheels.PTXAS).write_bytes(lzma.compress(b"#!/bin/sh\necho V13.9\n"))
    environment, lacking = wheels.unpack(folder, place)
    assert lacking == []  # this environment has the rest
    command = [sys.executable, "-c", "import absent_here, omegaconf; print(absent_here.NAME, omegaconf.__file__)"]
    name, path = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()
    assert name == "carried"
    assert str(tmp_path) not in path  # what is installed comes first
    tool = environment["TRITON_PTXAS_PATH"]
    assert subprocess.run([tool], capture_output=True, text=True).stdout == "V13.9\n"


def test_damaged_wheels_are_left_out(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "absent_here-1.0-py3-none-any.whl").write_bytes(b"no archive")
    (folder / wheels.PTXAS).write_bytes(lzma.compress(b"x" * 1000)[:40])
    environment, lacking = wheels.unpack(folder, tmp_path / "place")
    assert [line.split(" (")[0] for line in lacking] == ["absent_here-1.0-py3-none-any.whl", "ptxas.xz"]
    assert "TRITON_PTXAS_PATH" not in environment


def test_without_wheels_it_is_said_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    environment, lacking = wheels.unpack(tmp_path / "absent", tmp_path / "place")
    assert [line.split(" (")[0] for line in lacking] == ["omegaconf", "yaml", "fla", "einops", "a newer ptxas"]
    assert "TRITON_PTXAS_PATH" not in environment


@pytest.mark.parametrize(
    ("carried", "shipped", "used"),
    [(True, True, True), (False, True, False), (None, True, False), (False, False, True)],
)
def test_the_carried_assembler_is_used_unless_it_was_seen_to_fail(settings, carried, shipped, used):
    path = settings.output / "probe.jsonl"
    for name, right in (("product, carried ptxas", carried), ("product, Triton's ptxas", shipped)):
        more = {"ok": False, "error": "it failed"} if right is None else {"ok": True, "result": {"right": right}}
        records.append(path, item=name, **more)
    found = running.environment_of(settings, {"TRITON_PTXAS_PATH": "there"}, PARTS[2])
    assert ("TRITON_PTXAS_PATH" in found) == used


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "probe,spede"], "unknown part 'spede': did you mean 'speed'"),
        ([], "no NVIDIA GPU here; --rehearse"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_mistakes(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_number_is_no_right_one():
    wanted = torch.ones(4)
    assert relative_rms(torch.tensor([1.0, 1.0, 1.0, 3.0]), wanted) == pytest.approx(1.0)
    assert not relative_rms(torch.full((4,), torch.nan), wanted) <= 1
