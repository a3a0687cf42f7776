"""A disk that is full in the middle of a run: training goes on, and MLflow has every point once after a resume."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cl_ovq.errors import UserError
from cl_ovq.tracking import Tracker
from cl_ovq.tracking.journal import JournalReader, JournalWriter
from cl_ovq.tracking.sync import find_journals, sync


@pytest.fixture
def small(tmp_path):
    """A small disk of its own: `folder`, and a function that fills it and one that makes room."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    filler = folder / "filler"

    def fill():
        # To the last byte of the journal's own block, too, as whatever fills a disk may leave any rest.
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 512):
                pass

    try:
        yield folder, fill, filler.unlink
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def track(folder, uri, steps, *, during=None, resume=False, error=None):
    """Track a run of some steps, each of two metrics, and let it end with an error; `during` is called at a step."""
    tracker = Tracker(
        folder, uri=uri, experiment="full", run_name="r", tags={"a": 1}, parameters={"b": 2}, resume=resume
    )
    try:
        with tracker:
            for step in steps:
                for call in (during or {}).get(step, ()):
                    call()
                tracker.log({"loss/train": 1 / step}, step)
                tracker.log({"loss/train2": 2 / step, "nan": float("nan")}, step)
                if step % 100 == 0:
                    assert tracker.run_id  # as much as there is is sent now
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    return tracker


def histories(client, run_id):
    return {
        name: [point.step for point in client.get_metric_history(run_id, name)]
        for name in ("loss/train", "loss/train2", "nan")
    }


@pytest.mark.parametrize("room", ["again before the end", "after the end"])
@pytest.mark.parametrize("checkpoint", [90, 260])
def test_every_point_is_there_once(small, store, capfd, room, checkpoint):
    folder, fill, free = small
    again = room == "again before the end"
    first = track(
        folder,
        store,
        range(1, 401),
        during={250: (fill,), **({350: (free,)} if again else {})},
        error=KeyboardInterrupt,
    )
    said = capfd.readouterr().err
    if again:
        assert said == ""
    else:
        assert "No space left on device" in said
        assert len(said.splitlines()) <= 2
        free()
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(first.run_id).info.status == "KILLED"
    # Nothing later than what is there is in a checkpoint, which needs more room than the journal.
    last = track(folder, store, range(checkpoint if again else min(checkpoint, 200), 501), resume=True)
    assert last.run_id == first.run_id
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["a"], run.data.params) == ("FINISHED", "1", {"b": "2"})
    assert histories(client, first.run_id) == {name: [*range(1, 501)] for name in ("loss/train", "loss/train2", "nan")}
    assert find_journals(folder) == []


def test_a_run_that_ends_on_a_full_disk_is_finished(small, store, capfd):
    folder, fill, free = small
    tracker = track(folder, store, range(1, 301), during={250: (fill,)})
    assert "No space left on device" in capfd.readouterr().err
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    free()
    assert [found.outcome for found in sync(folder, store)] == ["sent"]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    steps = histories(client, tracker.run_id)["loss/train"]
    assert steps == [*range(1, len(steps) + 1)]
    assert find_journals(folder) == []


def test_a_disk_that_is_full_from_the_start_is_told(small, store):
    folder, fill, _ = small
    fill()
    with pytest.raises(UserError, match=r"^output_dir: cannot write into .*: No space left on device$"):
        track(folder, store, range(1, 3))
    assert {path.name for path in folder.iterdir()} == {"filler"}


def test_a_point_that_mlflow_has_and_the_state_does_not_is_not_doubled(tmp_path, store):
    """A sender that died, or whose disk was full, between the two."""
    first = track(tmp_path, store, range(1, 51), error=KeyboardInterrupt)
    (state,) = tmp_path.glob("tracking-*.json")
    text = state.read_text()
    again = track(tmp_path, store, range(20, 81), resume=True, error=KeyboardInterrupt)
    state.write_text(text)  # as of before
    last = track(tmp_path, store, range(30, 101), resume=True)
    assert {first.run_id, again.run_id, last.run_id} == {first.run_id}
    steps = histories(MlflowClient(tracking_uri=store), first.run_id)
    assert steps == {name: [*range(1, 101)] for name in steps}


def test_half_a_line_is_completed_when_there_is_room(small):
    folder, fill, free = small
    writer = JournalWriter(folder)
    fill()
    for number in range(1000):
        writer.write("tags", values={"number": str(number)})
    assert "No space left on device" in writer.problem
    free()
    writer.write("tags", values={"number": "1000"})
    assert writer.problem is None
    reader = JournalReader(writer.path)
    assert [record.values["number"] for record in reader.all_records(0)] == [str(number) for number in range(1001)]
    writer.close()
    reader.close()


def test_what_is_written_for_a_step_does_not_grow_with_the_steps(tmp_path, store):
    """What a run and the process beside it write are as many bytes for a late step as for an early one."""
    with Tracker(tmp_path, uri=store, experiment="cost", run_name="r", tags={}, parameters={}) as tracker:
        sizes, journal = [], Path(tracker._journal.path)
        for steps in (range(1, 2001), range(2001, 4001), range(4001, 6001)):
            before = journal.stat().st_size if journal.exists() else 0
            for step in steps:
                tracker.log({"loss/train": 0.5}, step)
            sizes.append(journal.stat().st_size - before)
            assert tracker.run_id
            assert os.path.getsize(journal.with_suffix(".json")) < 500
    assert max(sizes) < 1.02 * min(sizes)
