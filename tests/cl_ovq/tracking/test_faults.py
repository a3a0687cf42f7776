"""What happens to a run's record when something dies: the run, the process beside it, the server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cl_ovq.tracking import Tracker
from cl_ovq.tracking.journal import JournalReader, JournalWriter
from cl_ovq.tracking.process import SenderProcess
from cl_ovq.tracking.records import JournalMalformed
from cl_ovq.tracking.sender import INTERVAL
from cl_ovq.tracking.sync import find_journals, sync

from .conftest import SRC, free_port

STEPS = 300
# A process that tracks a run, says so, and goes on until it is stopped.
WRITER = """
import sys, time
from pathlib import Path
from cl_ovq.tracking import Tracker
from cl_ovq.tracking.process import SenderProcess
folder, uri, name, steps = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
folder.mkdir(parents=True, exist_ok=True)
with Tracker(folder, uri=uri, experiment="faults", run_name=name, tags={}, parameters={"a.b": 1}) as tracker:
    for step in range(1, steps + 1):
        tracker.log({"loss/train": 1 / step, "dictionary/size": step}, step)
    if len(sys.argv) > 5:
        print(tracker.run_id, SenderProcess.shared()._process.pid, flush=True)
        time.sleep(600)
"""


def start(folder, uri, name="r", steps=STEPS, wait=True):
    command = [sys.executable, "-c", WRITER, str(folder), uri, name, str(steps), *(["wait"] if wait else [])]
    return subprocess.Popen(command, cwd=SRC, stdout=subprocess.PIPE, text=True)


def until(condition, seconds=600.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def history(client, run_id, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def assert_complete(client, run_id, steps=STEPS):
    assert history(client, run_id, "loss/train") == [(step, 1 / step) for step in range(1, steps + 1)]
    assert history(client, run_id, "dictionary/size") == [(step, step) for step in range(1, steps + 1)]
    assert client.get_run(run_id).data.params == {"a.b": "1"}


def runs_of(client, name):
    experiment = client.get_experiment_by_name("faults")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in found if run.info.run_name == name]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_is_marked_and_loses_nothing(store, tmp_path, blow):
    process = start(tmp_path, store)
    run_id = process.stdout.readline().split()[0]
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(run_id).info.status == "RUNNING"
    process.send_signal(blow)
    process.wait()
    until(lambda: client.get_run(run_id).info.status == "KILLED")
    assert_complete(client, run_id)
    until(lambda: not find_journals(tmp_path))


def test_everything_killed_is_put_right_later(store, tmp_path):
    process = start(tmp_path, store)
    run_id, sender = process.stdout.readline().split()
    os.kill(int(sender), signal.SIGKILL)
    process.kill()
    process.wait()
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(run_id).info.status == "RUNNING"
    outcomes = []
    until(
        lambda: outcomes.append(sync(tmp_path, store)) or outcomes[-1][0].outcome != "running"
    )  # it dies when it dies
    assert [(found.outcome, found.run_id) for found in outcomes[-1]] == [("sent", run_id)]
    assert client.get_run(run_id).info.status == "KILLED"
    assert_complete(client, run_id)
    assert sync(tmp_path, store) == []


def test_a_run_that_goes_on_is_left_alone(store, tmp_path):
    process = start(tmp_path, store)
    run_id, _ = process.stdout.readline().split()
    assert [run.outcome for run in sync(tmp_path, store)] == ["running"]
    assert MlflowClient(tracking_uri=store).get_run(run_id).info.status == "RUNNING"
    process.kill()
    process.wait()


def test_sender_that_dies_is_replaced_at_the_end(store, tmp_path):
    with Tracker(tmp_path, uri=store, experiment="faults", run_name="orphan", tags={}, parameters={}) as tracker:
        tracker.log({"m": 1}, 1)
        assert tracker.run_id
        sender = SenderProcess.shared()._process
        sender.kill()
        sender.wait()
        tracker.log({"m": 2}, 2)
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert history(client, tracker.run_id, "m") == [(1, 1), (2, 2)]


def test_no_answer_is_waited_for_twice(tmp_path, relay, monkeypatch):
    """A run without an id asks for it anew; the answer that was taken would never come again."""
    own, waited = SenderProcess.answer, []

    def answer(self, number, seconds):
        waited.append(number)
        return own(self, number, seconds)

    monkeypatch.setattr(SenderProcess, "answer", answer)
    names = {"experiment": "faults", "run_name": "no id", "tags": {}, "parameters": {}}
    with Tracker(tmp_path, uri=relay.address, **names) as tracker:
        assert [tracker.run_id, tracker.run_id] == [None, None]
    assert len(waited) > 2
    assert len(set(waited)) == len(waited)


def test_server_that_is_down_stops_nothing(run_in, tiny, tmp_path, relay, capfd):
    """The run goes on with a warning, is kept on disk, and is sent when the server is there; twice is like once."""
    experiment = f"tracking.experiment={tmp_path.name}"
    config = tiny("tracking.enabled=true", f"tracking.uri={relay.address}", "output_dir=out", experiment)
    result = run_in(tmp_path, config)
    assert result.run_id is None
    out = tmp_path / "out"
    assert "cl-ovq sync" in capfd.readouterr().err
    assert [run.outcome for run in sync(tmp_path, relay.address)] == ["kept"]
    copy = {path.name: path.read_bytes() for path in out.glob("tracking-*")}
    assert len(copy) == 2

    relay.open()
    (found,) = sync(tmp_path, relay.address)
    assert found.outcome == "sent", found
    client = MlflowClient(tracking_uri=relay.address)
    first = client.get_run(found.run_id)
    assert first.info.status == "FINISHED"
    assert first.data.metrics["accuracy"] == result.metrics["accuracy"]
    assert json.loads((out / "results.json").read_text())["run_id"] == found.run_id
    assert {"results.json", "config.yaml"} <= {file.path for file in client.list_artifacts(found.run_id)}
    losses = history(client, found.run_id, "loss/train")
    assert [step for step, _ in losses] == list(range(1, result.provenance["train_steps"] + 1))

    # Once more, as if nobody knew that it was sent, only that this had begun.
    for name, content in copy.items():
        state = {**json.loads(content), "attempted": True} if name.endswith(".json") else None
        (out / name).write_bytes(json.dumps(state).encode() if state else content)
    (again,) = sync(tmp_path, relay.address)
    assert (again.outcome, again.run_id) == ("sent", found.run_id)
    assert len(client.search_runs([first.info.experiment_id])) == 1
    assert history(client, found.run_id, "loss/train") == losses
    second = client.get_run(found.run_id)
    assert second.data.metrics == first.data.metrics
    assert second.info.end_time == first.info.end_time
    assert len(second.outputs.model_outputs) == len(second.inputs.dataset_inputs) == 1


def test_server_that_hangs_does_not_hold_up_a_run(tmp_path, monkeypatch):
    """A server that accepts connections and never answers takes no time while a run logs, and some at its end."""

    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("cl_ovq.tracking.tracker.ENDING_SECONDS", 2.0)
        tracker = Tracker(tmp_path, uri=uri, experiment="e", run_name="r", tags={}, parameters={})
        begun = time.monotonic()
        for step in range(1000):
            tracker.log({"m": step}, step)
        assert time.monotonic() - begun < 9  # a call that waited for the server once would take ten seconds
        tracker.__exit__(None, None, None)
    (journal,) = find_journals(tmp_path)
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "metrics"] == list(range(1000))
    assert records[-1]["status"] == "FINISHED"
    SenderProcess.shared()._process.kill()  # it is still waiting for that server


def test_server_that_goes_away_and_comes_back(tmp_path, relay):
    relay.open()
    with Tracker(tmp_path, uri=relay.address, experiment="faults", run_name="r", tags={}, parameters={}) as tracker:
        run_id = tracker.run_id
        assert run_id
        relay.cut()
        tracker.log({"m": 1}, 1)
        assert tracker.run_id == run_id
        time.sleep(INTERVAL + 1)  # it is seen to be gone
        relay.open()
        tracker.log({"m": 2}, 2)
    client = MlflowClient(tracking_uri=relay.address)
    assert history(client, run_id, "m") == [(1, 1), (2, 2)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_resumed_run_is_one_run_without_doubles(store, tmp_path):
    client = MlflowClient(tracking_uri=store)

    def track(resume, steps, error):
        tracker = Tracker(
            tmp_path, uri=store, experiment="faults", run_name="resumed", tags={}, parameters={}, resume=resume
        )
        with pytest.raises(KeyboardInterrupt) if error else tracker, tracker if error else pytest.MonkeyPatch.context():
            for step in steps:
                tracker.log({"m": step * step}, step)
            if error:
                raise KeyboardInterrupt
        return tracker.run_id

    first = track(True, range(1, 8), error=True)
    assert client.get_run(first).info.status == "KILLED"
    second = track(True, range(5, 12), error=False)  # from a checkpoint at step 4
    assert second == first
    assert client.get_run(first).info.status == "FINISHED"
    assert history(client, first, "m") == [(step, step * step) for step in range(1, 12)]
    assert track(False, range(1, 3), error=False) != first


def test_a_run_that_begins_again_is_one_run_if_it_is_the_same(store, tmp_path):
    """It was interrupted before there was a checkpoint."""
    client = MlflowClient(tracking_uri=store)

    def track(width, steps, error=None):
        names = {"experiment": "faults", "run_name": "again", "tags": {}}
        tracker = Tracker(tmp_path, uri=store, parameters={"width": width}, resume=None, **names)
        with contextlib.suppress(KeyboardInterrupt), tracker:
            for step in steps:
                tracker.log({"m": step * step}, step)
            if error:
                raise error
        return tracker.run_id

    first = track(1, range(1, 6), KeyboardInterrupt)
    assert client.get_run(first).info.status == "KILLED"
    assert track(1, range(1, 9)) == first
    assert client.get_run(first).info.status == "FINISHED"
    assert history(client, first, "m") == [(step, step * step) for step in range(1, 9)]
    assert track(2, range(1, 3)) != first


def test_resumed_run_that_was_never_sent(store, tmp_path):
    """The first part could not be sent: the second goes into the same journal, and all of it becomes one run."""
    down = f"http://127.0.0.1:{free_port()}"
    for steps in (range(1, 6), range(4, 9)):
        with Tracker(
            tmp_path, uri=down, experiment="faults", run_name="unsent", tags={}, parameters={}, resume=True
        ) as tracker:
            for step in steps:
                tracker.log({"m": step}, step)
    assert tracker.run_id is None
    (found,) = sync(tmp_path, store, anyway=True)
    assert found.outcome == "sent", found
    client = MlflowClient(tracking_uri=store)
    assert history(client, found.run_id, "m") == [(step, step) for step in range(1, 9)]
    assert client.get_run(found.run_id).info.status == "FINISHED"


def test_five_processes_lose_nothing(tmp_path):
    """On a store that none of them finds: all five make it at once."""
    uri = f"sqlite:///{tmp_path}/store.db"
    processes = [start(tmp_path / str(i), uri, f"run {i}", wait=False) for i in range(5)]
    assert [process.wait(timeout=600) for process in processes] == [0] * 5
    until(lambda: not find_journals(tmp_path))  # on a busy machine some may be sent after their process's end
    client = MlflowClient(tracking_uri=uri)
    assert len(client.search_experiments(filter_string="name = 'faults'")) == 1
    for i in range(5):
        (run,) = runs_of(client, f"run {i}")
        assert run.info.status == "FINISHED"
        assert_complete(client, run.info.run_id)
    assert find_journals(tmp_path) == []


def test_what_mlflow_refuses_does_not_hold_up_the_rest(store, tmp_path, capfd):
    with Tracker(tmp_path, uri=store, experiment="faults", run_name="r", tags={}, parameters={}) as tracker:
        tracker.log({"not a na!me": 1}, 1)
        tracker.log_file(tmp_path / "gone")
        tracker.tag({"after": "it"})
    run = MlflowClient(tracking_uri=store).get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["after"]) == ("FINISHED", "it")
    said = capfd.readouterr().err
    assert "tracking: MLflow refused 2 of what was logged: metric 'not a na!me': " in said.replace("file: ", "")


def test_line_cut_short_is_passed_over(tmp_path):
    """A run goes on after it, and only a run that goes on may stand after it."""
    writer = JournalWriter(tmp_path)
    writer.write("tags", values={"a": "1"})
    writer._file.write(b'{"kind":"tags","val')
    writer.close()
    reader = JournalReader(writer.path)
    assert [record.kind for record, _ in reader.records(0)] == ["tags"]
    again = JournalWriter(tmp_path, resume=True)
    assert (again.key, again.resumed) == (writer.key, True)
    again.write("resume", uri="sqlite:///a.db")
    assert [record and record.kind for record, _ in reader.records(0)] == ["tags", None, "resume"]
    again._file.write(b'{"kind":"tags","val\n')
    again.write("tags", values={})
    with pytest.raises(JournalMalformed, match="is not JSON"):
        reader.records(0)
    again.close()
    reader.close()


def test_a_run_that_was_killed_in_its_first_line_begins_anew(tmp_path):
    writer = JournalWriter(tmp_path)
    writer._file.write(b'{"kind":"run","uri')
    writer.close()
    again = JournalWriter(tmp_path, resume=True)
    assert (again.key, again.resumed, again.path.read_bytes()) == (writer.key, False, b"")
    again.close()


def test_full_disk_stops_nothing(store, capfd):
    """`/dev/full` is a disk without room."""
    folder = Path("/dev/shm") / f"cl-ovq-test-{os.getpid()}"
    folder.mkdir()
    try:
        with Tracker(folder, uri=store, experiment="faults", run_name="r", tags={}, parameters={}) as tracker:
            with open("/dev/full", "ab", buffering=0) as full:
                os.dup2(full.fileno(), tracker._journal._file.fileno())
            tracker.log({"m": 1}, 1)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert "cannot write" in capfd.readouterr().err
