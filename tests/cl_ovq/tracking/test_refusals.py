"""What MLflow refuses: said before training where that can be known, and otherwise it costs nothing else."""

import json

import pytest
from mlflow import MlflowClient

from cl_ovq.tracking import Tracker
from cl_ovq.tracking.sync import find_journals, sync

PATH = "tracking.enabled=true"


def track(folder, uri, experiment="refusals", **more):
    """A tracker of a run in a folder of its own."""
    folder.mkdir(exist_ok=True)
    names = {"run_name": "r", "tags": {}, "parameters": {}} | more
    return Tracker(folder, uri=uri, experiment=experiment, **names)


def history(client, run_id, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_a_deleted_experiment_is_refused_before_training(call, tiny_path, tmp_path, store):
    client = MlflowClient(tracking_uri=store)
    number = client.create_experiment("deleted before")
    client.delete_experiment(number)
    overrides = (PATH, f"tracking.uri={store}", "tracking.experiment=deleted before")
    for more in ((), ("seeds=2",)):
        code, out, error = call("run", tiny_path, *overrides, *more)
        assert (code, out, len(error.splitlines())) == (2, "", 1)
        assert error.startswith(
            "error: tracking.experiment: the experiment 'deleted before' was deleted in MLflow: restore"
        )
        assert f"mlflow experiments restore --experiment-id {number}`, or choose another" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["tracking.tags={'a,b': x}"], "tracking.tags: MLflow does not allow the tag 'a,b': "),
        (["tracking.tags={a/../b: x}"], "tracking.tags: MLflow does not allow the tag 'a/../b': "),
        (
            [f"tracking.tags.{'a' * 300}=x"],
            f"tracking.tags: '{'a' * 20}...' has 300 characters: MLflow allows at most 236",
        ),
        ([f"tracking.run_name={'n' * 300}"], "tracking.run_name: has 300 characters: MLflow allows 1 to 250"),
        (["tracking.run_name=''"], "tracking.run_name: has 0 characters: MLflow allows 1 to 250"),
        ([f"tracking.experiment={'e' * 501}"], "tracking.experiment: has 501 characters: MLflow allows 1 to 500"),
        (["tracking.experiment=''"], "tracking.experiment: has 0 characters: MLflow allows 1 to 500"),
    ],
)
def test_names_that_mlflow_refuses(call, tiny_path, tmp_path, store, overrides, line):
    code, out, error = call("run", tiny_path, PATH, f"tracking.uri={store}", *overrides)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert error.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["before the run", "within it"])
def test_an_experiment_that_is_deleted_and_restored_costs_nothing(tmp_path, store, capfd, moment):
    client, experiment = MlflowClient(tracking_uri=store), f"deleted {moment}"
    number = client.create_experiment(experiment)
    if moment == "before the run":
        client.delete_experiment(number)
    with track(tmp_path, store, experiment, tags={"a": 1}, parameters={"x.y": 2}) as tracker:
        tracker.log({"m": 1}, 1)
        if moment == "within it":
            assert tracker.run_id
            client.delete_experiment(number)
        tracker.log({"m": 2}, 2)
    said = capfd.readouterr().err
    assert "deleted in MLflow: restore it with `" in said
    assert len(said.splitlines()) == 1
    (kept,) = sync(tmp_path, store)
    assert (kept.outcome, "restore it with" in kept.reason) == ("kept", True)
    client.restore_experiment(number)
    (sent,) = sync(tmp_path, store)
    assert (sent.outcome, sent.reason) == ("sent", None)
    assert history(client, sent.run_id, "m") == [(1, 1), (2, 2)]
    run = client.get_run(sent.run_id)
    assert (run.info.status, run.data.params, run.data.tags["a"]) == ("FINISHED", {"x.y": "2"}, "1")
    assert find_journals(tmp_path) == []


def test_a_run_that_is_deleted_and_restored_loses_nothing(tmp_path, store):
    client = MlflowClient(tracking_uri=store)
    with track(tmp_path, store) as tracker:
        client.delete_run(tracker.run_id)
        tracker.log({"m": 1}, 1)
    assert [found.outcome for found in sync(tmp_path, store)] == ["kept"]
    client.restore_run(tracker.run_id)
    assert [found.outcome for found in sync(tmp_path, store)] == ["sent"]
    assert history(client, tracker.run_id, "m") == [(1, 1)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_journal_whose_run_an_older_version_passed_over_is_sent(tmp_path, store):
    client = MlflowClient(tracking_uri=store)
    number = client.create_experiment("passed over")
    client.delete_experiment(number)
    with track(tmp_path, store, "passed over") as tracker:
        tracker.log({"m": 1}, 1)
    (journal,) = find_journals(tmp_path)
    state = json.loads(journal.with_suffix(".json").read_text())
    state["offset"] = len(journal.read_bytes().splitlines(keepends=True)[0])
    journal.with_suffix(".json").write_text(json.dumps(state))
    client.restore_experiment(number)
    (found,) = sync(tmp_path, store)
    assert (found.outcome, history(client, found.run_id, "m")) == ("sent", [(1, 1)])


def test_one_illegal_name_costs_no_other(tmp_path, store, capfd):
    client = MlflowClient(tracking_uri=store)
    names = [f"p{number}" for number in range(150)]
    with track(
        tmp_path,
        store,
        tags={"good": 1, "b,ad": 2} | dict.fromkeys(names, 0),
        parameters={"x.y": 3, "tracking.tags.a,b": 4} | dict.fromkeys(names, 0),
    ) as tracker:
        tracker.log({"m": 1, "not a na!me": 2}, 1)
        tracker.log({"m": 2, "not a na!me": 3}, 2)
        tracker.tag({"later": 5, "worse;": 6})
    data = client.get_run(tracker.run_id).data
    assert data.params == {"x.y": "3"} | dict.fromkeys(names, "0")
    assert {name: data.tags[name] for name in ("good", "later")} == {"good": "1", "later": "5"}
    assert set(names) <= set(data.tags)
    assert history(client, tracker.run_id, "m") == [(1, 1), (2, 2)]
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("tracking: MLflow refused 4 of what was logged: tag 'b,ad': ")
    assert "param 'tracking.tags.a,b': " in said
    assert "metric 'not a na!me': " in said
    assert said.endswith("; and 1 more")
    assert find_journals(tmp_path) == []


def test_a_tag_of_the_user_does_not_hide_the_run_from_its_own_sender(tmp_path, store):
    with track(tmp_path, store, tags={"cl_ovq.key": "mine"}) as tracker:
        pass
    assert MlflowClient(tracking_uri=store).get_run(tracker.run_id).data.tags["cl_ovq.key"] == tracker.key
