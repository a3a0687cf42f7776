"""A disk that is full, a real one: training goes on, nothing is lost, and the run goes on once there is room again."""

import json
import os
import subprocess
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
from mlflow import MlflowClient
from quick_settings import QUICK
from resume_helpers import FAST, PARTS, Killed, final, killed_at

from cl_ovq.runs import finish
from cl_ovq.runs.checkpoints import NAME, plugin
from cl_ovq.runs.checkpoints.history import NAME as HISTORY
from cl_ovq.runs.checkpoints.history import History
from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.tracking.journal import JournalWriter

STRATEGIES = ("naive", "derpp", "online_ewc", "lwf", "si")

MEASURED = {"train_seconds", "wall_seconds", "peak_memory_bytes"}


class Disk:
    """A small file system in memory."""

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"

    def fill(self):
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self):
        (self.folder / "ballast").unlink(missing_ok=True)


@contextmanager
def mounted(folder, *options):
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(("size=6m", *options)), "tmpfs", folder], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted: {made.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk(tmp_path):
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    with mounted(tmp_path / "disk") as disk:
        yield disk


def before(owner, name, number, act):
    """Do something before a call of a function."""
    own, counted = getattr(owner, name), [0]

    def counting(*args, **kwargs):
        counted[0] += 1
        if counted[0] == number:
            act()
        return own(*args, **kwargs)

    return patch.object(owner, name, counting)


WRITES = {
    "a checkpoint": (plugin, "write_checkpoint", 2),
    "history": (History, "append", 3),
    "results": (finish, "write_result", 1),
    "figures": (finish, "draw_figures", 1),
}
LONG = [
    pytest.param(strategy, write, call, marks=pytest.mark.slow)
    for strategy in STRATEGIES
    for write, calls in {"a checkpoint": (1, 5, 8), "history": (1, 4, 7), "results": (1,), "figures": (1,)}.items()
    for call in calls
]


@pytest.fixture
def run(tiny_path, call, disk):
    """`run(strategy, *more)`: exit code, standard output and standard error of a run on the small disk."""

    def run(strategy, *more):
        step = ("checkpoint.every_steps=3", "evaluation.every_steps=4", f"output_dir={disk.run}")
        return call("run", tiny_path, f"strategy.name={strategy}", *FAST, "threads=1", "figures=true", *step, *more)

    return run


@pytest.mark.parametrize(
    ("strategy", "write", "number"), [*(("naive", write, call) for write, (*_, call) in WRITES.items()), *LONG]
)
def test_full_from_a_write_on(run, disk, undisturbed, strategy, write, number):
    owner, name, _ = WRITES[write]
    whole, expected = undisturbed(f"strategy.name={strategy}", *FAST, "evaluation.every_steps=4")
    with before(owner, name, number, disk.fill):
        code, out, error = run(strategy, "--json")
    lines = [line for line in error.splitlines() if "cannot be written" in line or "was not drawn" in line]
    assert all("No space left on device" in line or "figure" in line for line in lines)
    assert "Traceback" not in error
    found = json.loads(out)  # whatever the disk does, what was found is told
    for part in PARTS:
        assert found[part] == json.loads(whole.to_json())[part], part
    if write == "figures":
        assert code == 0
        assert (disk.run / "results.json").exists()
    else:
        assert code == 1
        assert lines[-1].endswith(": free some space and rerun with --resume; the result follows")
        assert not (disk.run / "results.json").exists()
        assert [line for line in lines if line.startswith("checkpoint:")] == lines[:1] if write != "results" else True
    assert not [path.name for path in disk.run.iterdir() if path.name.startswith(".")]
    disk.free()
    code, out, error = run(strategy, "--json", "--resume")
    assert code == 0, error
    again = json.loads(out)
    for part in PARTS:
        assert again[part] == found[part], part
    assert final(disk.run) == expected


@pytest.mark.parametrize("strategy", ["naive", *(pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES)])
@pytest.mark.parametrize(("owner", "name"), [(plugin, "write_checkpoint"), (History, "append")])
def test_full_for_a_while(run, disk, undisturbed, strategy, owner, name):
    """The previous checkpoint stays good while it cannot be replaced, and later ones are written again."""
    whole, expected = undisturbed(f"strategy.name={strategy}", *FAST, "evaluation.every_steps=4")
    with before(owner, name, 2, disk.fill), before(Checkpoints, "save", 5, disk.free):
        code, out, error = run(strategy, "--json")
    assert code == 0, error
    told = [line for line in error.splitlines() if "cannot be written" in line]
    assert len(told) == 1
    assert told[0] == (
        f"checkpoint: {disk.run / NAME} cannot be written: No space left on device: training continues with the "
        "previous checkpoint"
    )
    for part in PARTS:
        assert json.loads(out)[part] == json.loads(whole.to_json())[part], part
    assert final(disk.run) == expected
    (disk.run / "results.json").unlink()
    assert run(strategy, "--json", "--resume")[0] == 0  # from the last checkpoint, with the whole history


def test_killed_while_the_disk_is_full(run, disk, undisturbed):
    """The last checkpoint that could be written is the one to go on from."""
    whole, expected = undisturbed("strategy.name=derpp", *FAST, "evaluation.every_steps=4")
    with before(Checkpoints, "save", 3, disk.fill), killed_at(14), pytest.raises(Killed):
        run("derpp")
    disk.free()
    code, out, error = run("derpp", "--json", "--resume")
    assert code == 0, error
    assert "resumed after 0 of 2 experiences" in error
    for part in PARTS:
        assert json.loads(out)[part] == json.loads(whole.to_json())[part], part
    assert final(disk.run) == expected


@pytest.mark.parametrize("full_at", [2, 5])
@pytest.mark.parametrize(
    "strategy", ["derpp", *(pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES if name != "derpp")]
)
def test_killed_while_the_disk_is_full_with_tracking(run, disk, store, undisturbed, strategy, full_at):
    """MLflow has every point once, those too that waited in memory for room when a later checkpoint was written."""
    expected = undisturbed(f"strategy.name={strategy}", *FAST, "evaluation.every_steps=4")[1]
    tracked = ("tracking.enabled=true", f"tracking.uri={store}", f"tracking.experiment={strategy}{full_at}")

    write, journals = JournalWriter.write, []

    def written_before_death(self, kind, **content):
        journals[:] = [self]
        if kind != "end":
            write(self, kind, **content)

    def full():
        disk.fill()
        size, empty = journals[0].path.stat().st_size, len('{"kind":"tags","values":{"padding":""}}\n')
        write(journals[0], "tags", values={"padding": "x" * (-(size + empty) % 4096)})  # to the end of its last page
        assert journals[0].problem is None

    client, histories = MlflowClient(tracking_uri=store), []
    for folder, disturbed in (("whole", False), ("run", True)):
        disk.run = disk.folder / folder
        if disturbed:
            # There is room again for a moment, for one checkpoint; then the process is gone.
            with ExitStack() as stack:
                stack.enter_context(before(Checkpoints, "save", full_at, full))
                stack.enter_context(before(Checkpoints, "save", full_at + 1, disk.free))
                stack.enter_context(killed_at(3 * (full_at + 1)))
                stack.enter_context(patch.object(JournalWriter, "write", written_before_death))
                stack.enter_context(pytest.raises(Killed))
                run(strategy, *tracked)
            code, out, error = run(strategy, "--json", "--resume", *tracked)
            assert "resumed after" in error
        else:
            code, out, error = run(strategy, "--json", *tracked)
        assert code == 0, error
        found = json.loads(out)
        assert final(disk.run) == expected
        keys = client.get_run(found["run_id"]).data.metrics.keys()
        points = {key: client.get_metric_history(found["run_id"], key) for key in keys}
        histories.append({key: [(one.step, repr(one.value)) for one in points[key]] for key in keys - MEASURED})
    assert histories[0].keys() == histories[1].keys()
    assert {key for key in histories[0] if histories[0][key] != histories[1][key]} == set()


def test_a_run_that_cannot_begin(tiny_path, call, tmp_path, disk):
    """A file system that takes no more files."""
    with mounted(tmp_path / "no_inodes", "nr_inodes=2") as other:
        for more in ((), ("seeds=2",), ("tracking.enabled=true",)):
            other.run.rmdir() if other.run.exists() else None
            code, out, error = call("run", tiny_path, *QUICK, f"output_dir={other.run}/a", *more)
            assert (code, out) == (2, "")
            assert error.startswith("error: output_dir: cannot ")
            assert error.endswith("No space left on device\n")
            assert len(error.splitlines()) == 1


def test_results_of_seeds_that_cannot_be_written(tiny_path, call, disk):
    from cl_ovq.runs import seeds

    arguments = ("run", tiny_path, "strategy.name=naive", *FAST, "seeds=2", f"output_dir={disk.run}", "--json")
    with before(seeds, "write_atomically", 1, disk.fill):
        code, out, error = call(*arguments)
    assert code == 1
    assert f"{disk.run / 'seeds.json'} cannot be written: No space left on device" in error
    disk.free()
    assert json.loads(out)["metrics"] == json.loads(call(*arguments, "--resume")[1])["metrics"]


def test_history_is_as_it_was_where_it_cannot_be_appended(disk):
    disk.run.mkdir()
    history = History(disk.run)
    rows = [{"value": number} for number in range(1000)]
    mark = history.append({"a": rows})
    content = (disk.run / HISTORY).read_bytes()
    disk.fill()
    more = [*rows, *({"value": number} for number in range(1000, 5000))]
    with pytest.raises(OSError, match="No space left"):
        history.append({"a": more})
    assert (disk.run / HISTORY).read_bytes() == content
    disk.free()
    assert History.read(disk.run, **history.append({"a": more})).rows["a"] == more
    assert History.read(disk.run, **mark).rows["a"] == rows
