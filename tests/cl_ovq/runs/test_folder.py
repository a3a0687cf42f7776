"""A folder belongs to one run at a time, and nothing that a run has found is overwritten unasked."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from quick_settings import QUICK

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints import NAME
from cl_ovq.runs.folder import LOCK, locked
from cl_ovq.sweeps.trials import Trial

HOLD = """
import fcntl, os, sys
os.mkdir(sys.argv[1])
file = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def files(tmp_path):
    """`files()`: every file under the test's folder, with its content."""
    return lambda: {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("cl_ovq.runs.folder.PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("cl_ovq.sweeps.trials.PATIENCE_SECONDS", 0.1)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `out`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


STUDY = "{seeds: 1, grids: [{row: {mine: {experiment: quickstart}}}]}"
SWEEP = "{experiment: quickstart, search: {name: grid}, space: {optimizer.learning_rate: {choice: [1e-3, 1e-2]}}}"


@pytest.mark.parametrize(
    "command",
    [
        ("run", "TINY", *QUICK, "output_dir=out"),
        ("run", "TINY", *QUICK, "output_dir=out", "--resume"),
        ("run", "TINY", *QUICK, "output_dir=out", "--overwrite"),
        ("run", "TINY", *QUICK, "output_dir=out", "tracking.enabled=true"),
        ("run", "TINY", *QUICK, "output_dir=out", "seeds=2"),
        ("run", "TINY", *QUICK, "output_dir=out", "seeds=2", "--resume"),
        ("study", "STUDY", "--directory=out"),
        ("sweep", "SWEEP", "--directory=out"),
    ],
    ids=" ".join,
)
def test_a_folder_that_another_process_holds_is_refused(call, tiny_path, tmp_path, holder, files, command):
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    given = {"TINY": tiny_path, "STUDY": "study.yaml", "SWEEP": "sweep.yaml"}
    before = files()
    code, out, error = call(*(given.get(word, word) for word in command))
    assert (code, out, len(error.splitlines())) == (2, "", 1), error
    assert error.endswith(f": another run is writing into {tmp_path / 'out' if command[0] == 'sweep' else 'out'}\n")
    assert files() == before


def test_a_trial_does_not_touch_a_folder_that_another_process_holds(tmp_path, files):
    trial = Trial(SimpleNamespace(sweep=None, directory=str(tmp_path)), 1, {})
    with locked(trial.directory, "x"):
        before = files()
        with pytest.raises(UserError, match="another run is writing into"):
            trial.run()
        assert files() == before


def test_a_killed_process_lets_go_and_its_temporary_files_are_removed(call, tiny_path, tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists()
    gone = holder.pid  # waited for, so that nobody has its number
    for name in (f".{NAME}.{gone}", f".results.json.{gone}", ".mine.7"):
        (tmp_path / "out" / name).write_text("half")
    code, _, error = call("run", tiny_path, *QUICK, "output_dir=out")
    assert code == 0, error
    assert {name for name in os.listdir("out") if name.startswith(".")} == {".mine.7"}


def test_one_holder_at_a_time(tmp_path, monkeypatch):
    """The file of the lock comes and goes with its holders; none may hold one that is gone."""
    monkeypatch.setattr("cl_ovq.runs.folder.PATIENCE_SECONDS", 60)
    inside, most, turns = [], [], []

    def work():
        for _ in range(25):
            with locked(tmp_path / "a" / "b", "x"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()
                turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(turns)) == (1, 150)


def test_a_folder_that_stays_empty_is_removed_if_it_was_made(tmp_path):
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a" / "b" / "c", "x"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_mistake_leaves_no_folder(call, tiny_path, tmp_path):
    stream = ("model.head=memory", "memory.calibrate=true", "stream.validation_fraction=0")
    for where in ((), ("output_dir=a/b",), ("output_dir=a/b", "seeds=2")):
        code, _, error = call("run", tiny_path, "strategy.name=naive", *stream, *where)
        assert (code, error.startswith("error: memory.calibrate: needs a validation stream")) == (2, True)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_no_file_can_be_put_into_is_refused_before_training(call, tiny_path):
    code, out, error = call("run", tiny_path, *QUICK, "output_dir=/proc/self")
    assert (code, out) == (2, "")
    assert error.startswith("error: output_dir: cannot write into the directory /proc/self: ")
    assert len(error.splitlines()) == 1


@pytest.fixture
def begun(call, tiny_path, tmp_path):
    """Leave in `out` the checkpoint of a run that did not end."""
    assert call("run", tiny_path, *QUICK, "output_dir=out")[0] == 0
    (tmp_path / "out" / "results.json").unlink()


def test_an_unfinished_run_is_not_overwritten_unasked(call, tiny_path, tmp_path, begun, files):
    before = files()
    for command in (("run", tiny_path, *QUICK), ("show", tiny_path)):
        code, out, error = call(*command, "output_dir=out")
        assert (code, out) == (2, "")
        assert error == (
            "error: output_dir: out already holds the checkpoint of a run: add --resume to continue it, "
            "--overwrite to replace it, or choose another directory\n"
        )
    assert call("run", tiny_path, *QUICK, "output_dir=out", "seeds=2", "--resume")[0] == 2
    assert call("run", tiny_path, *QUICK, "output_dir=out", "--resume", "--overwrite")[0] == 2
    assert files() == before
    assert call("run", tiny_path, *QUICK, "output_dir=out", "--resume")[0] == 0


def test_overwrite_replaces_a_run_and_nothing_else(call, tiny_path, tmp_path, begun):
    out = tmp_path / "out"
    for name in ("anytime.png", "notes.txt"):
        (out / name).write_text("old")
    code, _, error = call("run", tiny_path, *QUICK, "output_dir=out", "seed=5", "--overwrite")
    assert code == 0, error
    assert '"seed": 5' in (out / "results.json").read_text()
    assert (out / "notes.txt").read_text() == "old"
    assert not (out / "anytime.png").exists()


def test_overwrite_of_seeds(call, tiny_path, tmp_path):
    seeds = ("run", tiny_path, *QUICK, "output_dir=out", "seeds=2", "evaluation.stop_after=1")
    assert call(*seeds)[0] == 0
    (tmp_path / "out" / "seeds.json").unlink()
    code, _, error = call(*seeds)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "seed_0 already holds the results of a run" in error
    assert call(*seeds, "--overwrite", "optimizer.learning_rate=0.02")[0] == 0
    assert '"learning_rate": 0.02' in (tmp_path / "out" / "seed_1" / "results.json").read_text()


def test_an_overwriting_run_that_cannot_begin_removes_nothing(call, tiny_path, tmp_path, begun, files):
    before = files()
    stream = ("stream.name=split_fashion_mnist", f"stream.data_dir={tmp_path / 'none'}")
    assert call("run", tiny_path, *QUICK, *stream, "output_dir=out", "--overwrite")[0] == 2
    assert files() == before
