"""Journals that somebody else wrote: sent or set aside each on its own, and with nothing from outside their folder."""

import json
import os
import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cl_ovq.tracking.records import State
from cl_ovq.tracking.sync import MALFORMED, find_journals, sync
from cl_ovq.uris import redact

from .conftest import free_port

SECRET = "the secret of another folder"
KEY = "0123456789abcdef" * 2


def begun(uri, name="received", **changes):
    return {
        "kind": "run",
        "uri": uri,
        "experiment": "received",
        "name": name,
        "tags": {"a": "1"},
        "parent": None,
        "time": 1_700_000_000_000,
    } | changes


def metrics(**changes):
    return {"kind": "metrics", "values": {"m": 1.0}, "step": 1, "time": 1_700_000_000_001} | changes


END = {"kind": "end", "status": "FINISHED", "time": 1_700_000_000_002}


def lines(*records):
    return b"".join(record if isinstance(record, bytes) else json.dumps(record).encode() + b"\n" for record in records)


def write(folder, content, state=None, key=None):
    """Write a journal and the state beside it: the given bytes, or that of a new one."""
    key = key or uuid.uuid4().hex
    folder.mkdir(parents=True)
    path = folder / f"tracking-{key[:8]}.jsonl"
    path.write_bytes(content)
    path.with_suffix(".json").write_bytes(json.dumps({"key": key}).encode() if state is None else state)
    return path


def state(**changes):
    return json.dumps({"key": KEY} | changes).encode()


def malformed(uri):
    """Contents of a journal and of its state, by what is wrong with them."""
    run = begun(uri)
    return {
        "no json": (b"not a journal\n", None),
        "no json behind the run": (lines(run, b"not a journal\n", metrics(), END), None),
        "a list": (lines([1, 2], END), None),
        "a number": (lines(run, 7, END), None),
        "no kind": (lines({"a": 1}), None),
        "an unknown kind": (lines(run, {"kind": "serve"}, END), None),
        "a kind that is a name of Python": (lines(run, {"kind": "_send_one"}, END), None),
        "a kind that is a list": (lines(run, {"kind": ["run"]}, END), None),
        "no run first": (lines(metrics(), END), None),
        "an end first": (lines(END), None),
        "a run without a name": (lines({"kind": "run", "uri": uri}, END), None),
        "tags that are a list": (lines(begun(uri, tags=["a"]), END), None),
        "a tag that is a mapping": (lines(begun(uri, tags={"a": {}}), END), None),
        "an experiment that is a number": (lines(begun(uri, experiment=7), END), None),
        "an address that is a mapping": (lines(begun({"a": 1}), END), None),
        "no address": (lines({name: run[name] for name in run if name != "uri"}, END), None),
        "a parent that is a filter": (lines(begun(uri, parent="' OR '1'='1"), END), None),
        "a value that is a mapping": (lines(run, metrics(values={"m": {}}), END), None),
        "a step that is text": (lines(run, metrics(step="one"), END), None),
        "a step below zero": (lines(run, metrics(step=-1), END), None),
        "a step of a hundred digits": (lines(run, metrics(step=10**100), END), None),
        "a step of ten thousand digits": (
            lines(run, b'{"kind":"metrics","values":{},"step":' + b"9" * 10_000 + b',"time":1}\n', END),
            None,
        ),
        "a time of a hundred digits": (lines(run, metrics(time=10**100), END), None),
        "deeper than Python goes": (lines(run, b"[" * 100_000 + b"\n", END), None),
        "a status that there is not": (lines(run, END | {"status": "SOMETHING"}), None),
        "a path that is a number": (lines(run, {"kind": "file", "path": 7}, END), None),
        "a model without a shape": (lines(run, {"kind": "model", "path": "m.pt"}, END), None),
        "no UTF-8": (lines(run, b'{"kind":"tags","values":{"a":"\xff\xfe"}}\n', END), None),
        "zeros": (bytes(5000) + b"\n", None),
        "a line of 20 MB": (lines(run, b'"' + b"x" * 20_000_000 + b'"\n', END), None),
        "a state that is a list": (lines(run, END), b"[]"),
        "a state that is no JSON": (lines(run, END), b"{"),
        "a state of nothing": (lines(run, END), b""),
        "a state without a key": (lines(run, END), b"{}"),
        "a state with a key that is a filter": (lines(run, END), json.dumps({"key": "' OR '1'='1"}).encode()),
        "an offset beyond the end": (lines(run, END), state(run_id="a" * 32, offset=10**6)),
        "an offset below zero": (lines(run, END), state(run_id="a" * 32, offset=-1)),
        "an offset of a hundred digits": (lines(run, END), state(run_id="a" * 32, offset=10**100)),
        "an offset that is text": (lines(run, END), state(run_id="a" * 32, offset="1")),
        "an offset within a line": (lines(run, metrics(), END), state(run_id="a" * 32, offset=3)),
        "an id that is a path": (lines(run, END), state(run_id="../../x")),
        "refusals that are a number": (lines(run, END), state(refused=7)),
        "too many refusals": (lines(run, END), state(refused=["x"] * 1000)),
    }


def test_each_malformed_journal_is_set_aside_and_the_others_are_sent(store, tmp_path, call):
    cases = malformed(store)
    for number, (content, beside) in enumerate(cases.values()):
        write(tmp_path / "runs" / f"{number:02}", content, beside)
    good = [
        write(tmp_path / "runs" / name, lines(begun(store, name), metrics(), END)) for name in ("00-first", "zz-last")
    ]
    code, out, error = call("sync", "runs", "--uri", store)
    assert (code, error) == (1, "")
    told = {Path(line.split(": ")[1]).name: line for line in out.splitlines()}
    assert len(told) == len(out.splitlines()) == len(cases) + 2
    for number, name in enumerate(cases):
        assert told[f"{number:02}"].startswith("malformed: "), (name, told[f"{number:02}"])
    assert [told[path.parent.name].partition(":")[0] for path in good] == ["sent", "sent"]
    assert len(list(tmp_path.rglob(f"*{MALFORMED}"))) == len(cases)
    assert call("sync", "runs", "--uri", store) == (0, "nothing to send\n", "")


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link", "no state", "FIFO for a state", "link for a state"])
def test_what_is_no_file_is_told_and_not_waited_for(store, tmp_path, kind):
    path = write(tmp_path / "odd", lines(begun(store), END))
    other, beside = tmp_path / "elsewhere", path.with_suffix(".json")
    if kind.endswith("state"):
        beside.rename(other)
    else:
        path.rename(other)
    odd = beside if kind.endswith("state") else path
    if kind == "folder":
        odd.mkdir()
    elif kind.startswith("FIFO"):
        os.mkfifo(odd)
    elif kind.startswith("link"):
        odd.symlink_to(other)
    write(tmp_path / "good", lines(begun(store), END))
    found = {one.directory.name: one.outcome for one in sync(tmp_path, store)}
    assert found == {"odd": "malformed", "good": "sent"}


def test_only_files_of_the_runs_folder_are_sent(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    folder = tmp_path / "runs" / "received"
    names = {
        "fine.txt": None,
        "deep/fine.txt": None,
        str(outside / "secret"): "outside of the run's folder",
        "../../outside/secret": "outside of the run's folder",
        "to-a-file": "outside of the run's folder",
        "to-a-folder/secret": "outside of the run's folder",
        "in-a-circle": "not to be read",
        "fifo": "a FIFO",
        "deep": "a folder",
        ".": "a folder",
        "/dev/zero": "outside of the run's folder",
        "missing": "gone",
        "nul\0": "not to be read",
    }
    path = write(folder, lines(begun(store, "files"), *({"kind": "file", "path": name} for name in names), END))
    (folder / "deep").mkdir()
    (folder / "fine.txt").write_text("fine")
    (folder / "deep" / "fine.txt").write_text("fine, too")
    (folder / "to-a-file").symlink_to(outside / "secret")
    (folder / "to-a-folder").symlink_to(outside)
    (folder / "in-a-circle").symlink_to(folder / "in-a-circle")
    os.mkfifo(folder / "fifo")
    (found,) = sync(folder, store)
    assert found.outcome == "sent", found
    client = MlflowClient(tracking_uri=store)
    assert {file.path for file in client.list_artifacts(found.run_id)} == {"fine.txt"}
    kept = State.model_validate_json(path.with_suffix(".json").read_bytes()).refused
    wanted = [f"file: {name} is {reason}" for name, reason in names.items() if reason]
    assert [line[: len(want)] for line, want in zip(kept, wanted, strict=True)] == [
        want.replace("\0", "\N{REPLACEMENT CHARACTER}") for want in wanted
    ]


def test_a_model_is_taken_from_the_runs_folder_alone(store, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    model = {"kind": "model", "path": "../secret", "inputs": {"images": [-1, 1, 8, 8]}, "outputs": 10}
    write(tmp_path / "received", lines(begun(store, "model"), model, END))
    (found,) = sync(tmp_path, store)
    assert (found.outcome, "../secret is outside of the run's folder" in found.reason) == ("sent", True)
    run = MlflowClient(tracking_uri=store).get_run(found.run_id)
    assert not (run.outputs and run.outputs.model_outputs)


def test_results_behind_a_link_do_not_become_a_file_of_the_run(store, tmp_path):
    """The run's id is entered into results: a link there must not turn what it leads to into a file of the folder."""
    secret = tmp_path / "credentials.json"
    secret.write_text(json.dumps({"private_key": SECRET, "run_name": "x"}))
    folder = tmp_path / "received"
    write(folder, lines(begun(store, "link"), {"kind": "file", "path": "results.json"}, END))
    (folder / "results.json").symlink_to(secret)
    (found,) = sync(folder, store)
    assert (folder / "results.json").is_symlink()
    assert MlflowClient(tracking_uri=store).list_artifacts(found.run_id) == []
    assert "run_id" not in secret.read_text()


def test_a_journal_decides_no_store(store, tmp_path, call):
    """Not the address in it, and not where files go; another store is told, and the person may name it."""
    other = f"sqlite:///{tmp_path}/other.db"
    place = (tmp_path / "files").as_uri()
    path = write(tmp_path / "received", lines(begun(other, experiment="elsewhere", artifact_location=place), END))
    listening = f"http://127.0.0.1:{free_port()}"
    write(tmp_path / "server", lines(begun(listening), END))
    found = {one.directory.name: one for one in sync(tmp_path, store)}
    assert {one.outcome for one in found.values()} == {"kept"}
    assert redact(other) in found["received"].reason
    assert listening in found["server"].reason
    assert not (tmp_path / "other.db").exists()
    assert path.exists()
    code, out, _ = call("sync", tmp_path / "received")
    assert (code, out.partition(":")[0], other in out) == (1, "kept", True)
    code, out, _ = call("sync", tmp_path / "received", "--uri", store)
    assert (code, out.partition(":")[0]) == (0, "sent")
    experiment = MlflowClient(tracking_uri=store).get_experiment_by_name("elsewhere")
    assert experiment.artifact_location.startswith("file://" + store.removeprefix("sqlite:///").rpartition("/")[0])
    assert not (tmp_path / "files").exists()


def test_a_state_that_names_a_run_of_somebody_else_changes_it_in_nothing(store, tmp_path):
    client = MlflowClient(tracking_uri=store)
    mine = client.create_run(client.create_experiment("mine")).info.run_id
    write(tmp_path / "received", lines(begun(store), metrics(), END), state(run_id=mine))
    (found,) = sync(tmp_path, store)
    assert (found.outcome, "names another run" in found.reason) == ("malformed", True)
    run = client.get_run(mine)
    assert (run.info.status, run.data.metrics) == ("RUNNING", {})


def test_what_a_terminal_obeys_is_not_printed(store, tmp_path, call):
    write(tmp_path / "runs" / "\033[2Jred", b"\n")
    code, out, error = call("sync", "runs", "--uri", store)
    assert (code, "malformed" in out, "\033[2J" in out + error) == (1, True, False)
    assert find_journals(tmp_path) == []
