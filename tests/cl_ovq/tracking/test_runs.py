"""MLflow holds what the run found, in a SQLite file and on a server; a store that cannot be opened costs nothing."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from rich.console import Console

from cl_ovq.config.keys import flatten
from cl_ovq.errors import UserError
from cl_ovq.runs.callbacks import Callback
from cl_ovq.runs.result import summary_metrics
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.run_logging import run_color
from cl_ovq.strategies import STRATEGIES
from cl_ovq.tracking import StoreCheck, Tracker, artifact_location, open_client
from cl_ovq.tracking.process import SenderProcess
from cl_ovq.tracking.view import COMPARED as SUMMARY

OVERRIDES = ("tracking.enabled=true", "tracking.tags={note: a test}", "evaluation.dictionary_every=7")


@pytest.fixture(scope="module", params=["store", "server"])
def tracked(request, run_in, tiny, tmp_path_factory):
    """A tracked run: its result, a client of its store, and the working directory."""
    uri = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("tracked")
    result = run_in(folder, tiny(*OVERRIDES, f"tracking.uri={uri}", "figures=true"))
    return result, MlflowClient(tracking_uri=uri), folder


def test_run_is_finished_under_its_name(tracked):
    result, client, _ = tracked
    found = client.get_run(result.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == result.run_name
    assert client.get_experiment(found.info.experiment_id).name == "split_digits class_incremental"


def test_parameters_are_the_configuration(tracked):
    result, client, _ = tracked
    expected = {name: str(value) for name, value in flatten(result.config).items()}
    assert client.get_run(result.run_id).data.params == expected
    assert expected["dictionary.capacity"] == "24"


def test_tags(tracked):
    result, client, _ = tracked
    tags = client.get_run(result.run_id).data.tags
    assert {name: tags[name] for name in ("stream", "mixer", "scope", "strategy", "seed", "scenario", "note")} == {
        "stream": "split_digits",
        "mixer": "ovq",
        "scope": "stream",
        "strategy": "replay",
        "seed": "0",
        "scenario": "class_incremental",
        "note": "a test",
    }
    code = result.provenance["code"]
    assert tags["revision"] == str(code["revision"] or code["version"])


def history(client, run_id, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_metrics_are_those_of_the_result(tracked):
    result, client, _ = tracked
    steps = result.provenance["train_steps"]
    for name, value in summary_metrics(result).items():
        last = 2 if name in result.metrics else steps
        assert history(client, result.run_id, name)[-1] == (last, pytest.approx(value)), name
    assert set(SUMMARY) <= set(client.get_run(result.run_id).data.metrics)


def test_metrics_of_the_stream_are_logged_after_each_experience(tracked):
    result, client, _ = tracked
    first = np.array(result.matrix)[1, 0]
    (before, none), *learned = history(client, result.run_id, "accuracy")
    assert before == 0
    assert math.isnan(none)
    assert learned == [(1, first), (2, result.metrics["accuracy"])]
    assert [step for step, _ in history(client, result.run_id, "forgetting")] == [2]  # undefined for one experience


def test_plateaus_are_steps_of_a_metric(tracked):
    result, client, _ = tracked
    plateaus, steps = result.dictionary["plateaus"], result.provenance["train_steps"]
    found = dict(history(client, result.run_id, "dictionary/at_rest"))
    assert min(found) == 0
    assert max(found) == steps
    last = 0
    for step in range(steps + 1):  # between its points the metric keeps its value
        last = found.get(step, last)
        within = any(
            p["start_step"] <= step < (steps + 1 if p["end_step"] is None else p["end_step"]) for p in plateaus
        )
        assert last == within, step
    assert result.dictionary["plateau_tokens"] == (
        plateaus[0]["start_tokens"] if plateaus else result.dictionary["tokens"]
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.mixer=softmax",),
        ("dictionary.scope=sequence",),
        ("model.name=pixels", "model.head=memory", "memory.capacity=50", "strategy.name=naive"),
        ("strategy.name=joint",),
        ("stream.experiences=1",),
        ("stream.scenario=task_incremental",),
        (
            "model.name=sequence_model",
            *(f"stream.{option}" for option in ("name=regression", "train=32", "validation=4", "test=8")),
        ),
    ],
    ids=" ".join,
)
def test_every_kind_of_run_has_the_summary_metrics(run_in, tiny, store, tmp_path, overrides):
    config = tiny("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=kinds", *overrides)
    result = run_in(tmp_path, config)
    found = MlflowClient(tracking_uri=store).get_run(result.run_id).data.metrics
    assert set(SUMMARY) <= set(found)
    for name in SUMMARY:
        if name in result.metrics and result.metrics[name] is None:
            assert np.isnan(found[name])
    if "stream.name=regression" in overrides:
        assert np.isnan(found["accuracy"])
        assert found["squared_error"] == result.metrics["squared_error"] > 0
    if "softmax" in overrides[0]:
        assert [found[name] for name in SUMMARY if name.startswith("dictionary/")] == [0, 0, 0]
    if overrides[0].startswith(("dictionary", "model.name=pixels")):
        assert found["dictionary/size"] == result.dictionary["size"] > 0
        assert found["dictionary/plateau_tokens"] > 0


def test_description_holds_the_numbers(tracked):
    result, client, _ = tracked
    note = client.get_run(result.run_id).data.tags["mlflow.note.content"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in note.splitlines() if line.startswith("|")]
    assert ["average accuracy", f"{result.metrics['accuracy']:.3f}"] in rows
    assert ["after 2", *(f"{value:.3f}" for value in result.matrix[2])] in rows
    assert f"{result.dictionary['size']:.0f} slots per head" in note


def test_data_set_is_named(tracked):
    result, client, _ = tracked
    (given,) = client.get_run(result.run_id).inputs.dataset_inputs
    data = result.provenance["data"]
    assert given.dataset.name == "split_digits"
    assert data["split_sha256"].startswith(given.dataset.digest)
    assert len(given.dataset.digest) == 36
    assert json.loads(given.dataset.profile)["sizes"] == data["sizes"]
    assert [tag.value for tag in given.tags] == ["train, test"]


def test_matrix_is_logged_at_its_training_steps(tracked):
    result, client, _ = tracked
    ends = [0] + [max(r["step"] for r in result.dictionary["history"] if r["experience"] == e) for e in (1, 2)]
    matrices = {"accuracy": result.matrix} | result.matrices
    for name, matrix in matrices.items():
        for column in range(2):
            expected = [(step, row[column]) for step, row in zip(ends, matrix, strict=True)]
            assert history(client, result.run_id, f"{name}/task_{column + 1}") == expected


def test_what_is_left_is_logged_by_age(tracked):
    result, client, _ = tracked
    _, (first, _), (old, last) = result.matrix
    found = history(client, result.run_id, "accuracy/by_age")
    assert found == [(0, pytest.approx((first + last) / 2)), (1, old)]


def test_dictionary_and_loss_are_logged_over_steps(tracked):
    result, client, _ = tracked
    steps = result.provenance["train_steps"]
    losses = history(client, result.run_id, "loss/train")
    assert [step for step, _ in losses] == list(range(1, steps + 1))
    for name in ("size", "effective_size", "tokens"):
        found = dict(history(client, result.run_id, f"dictionary/{name}"))
        for record in result.dictionary["history"]:
            if record["step"] and (record["step"] % 7 == 0 or record["step"] == steps):
                assert found[record["step"]] == pytest.approx(record[name])


def test_artifacts(tracked):
    result, client, folder = tracked
    names = {file.path for file in client.list_artifacts(result.run_id)}
    assert (
        names
        == set(result.artifacts.values())
        >= {"results.json", "config.yaml", "matrix.png", "dictionary_growth.png"}
    )
    for name in names:
        stored = download_artifacts(run_id=result.run_id, artifact_path=name, tracking_uri=client.tracking_uri)
        assert Path(stored).read_bytes() == (folder / result.output_dir / name).read_bytes()
    assert json.loads((folder / result.output_dir / "results.json").read_text())["run_id"] == result.run_id


def test_nothing_falls_into_the_working_directory(tracked):
    _, _, folder = tracked
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["split_digits"]


def test_a_second_run_joins_the_experiment_and_says_nothing(tracked, run_in, tiny, capfd):
    result, client, folder = tracked
    second = run_in(folder, tiny(*OVERRIDES, f"tracking.uri={client.tracking_uri}", "stream.experiences=1", "seed=1"))
    assert capfd.readouterr().out == ""  # it is the result's
    first, other = client.get_run(result.run_id), client.get_run(second.run_id)
    assert first.info.experiment_id == other.info.experiment_id
    assert result.output_dir != second.output_dir


@pytest.mark.parametrize(
    "uri", ["sqlite:////dev/null/store.db", "nonsense://somewhere", "no_such_folder", "sqlite://x.db"]
)
def test_store_that_cannot_be_opened(run_in, tiny, tmp_path, uri):
    with pytest.raises(UserError, match=rf"^tracking\.uri: cannot open the store '{uri}': .+"):
        run_in(tmp_path, tiny("tracking.enabled=true", f"tracking.uri={uri}", f"output_dir={tmp_path / 'result'}"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"^tracking\.uri: "):
        run_in(tmp_path, tiny("tracking.enabled=true", f"tracking.uri={uri}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["runs/mine.db", "sqlite:runs/mine.db", "sqlite://runs/mine.db"])
def test_an_address_that_lacks_its_beginning_is_told(uri):
    with pytest.raises(UserError, match=r"^tracking\.uri: .* write sqlite:///runs/mine\.db[, ]"):
        open_client(uri)


def test_output_directory_that_cannot_be_made(run_in, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(UserError, match=r"^output_dir: cannot make the directory .*file"):
            run_in(tmp_path, tiny(f"output_dir={tmp_path / name}"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_training_that_fails_marks_the_run(run_in, tiny, tmp_path, store):
    name = "fails_in_its_third_step"

    @STRATEGIES.enter(name, "raises, to see what is left of the run")
    def _fails(options, context):
        from avalanche.training.plugins import SupervisedPlugin

        class Fail(SupervisedPlugin):
            STATE = ()

            def before_backward(self, strategy, **kwargs):
                if strategy.clock.train_iterations == 2:
                    raise ZeroDivisionError("in training")

        context.plugins.append(Fail())
        return context.naive()

    overrides = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=fails", f"strategy.name={name}")
    try:
        with pytest.raises(ZeroDivisionError, match="in training"):
            run_in(tmp_path, tiny(*overrides))
    finally:
        del STRATEGIES._parts[name]
    client = MlflowClient(tracking_uri=store)
    (found,) = client.search_runs([client.get_experiment_by_name("fails").experiment_id])
    assert found.info.status == "FAILED"
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss/train")] == [1, 2]
    assert found.data.params["strategy.name"] == name


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_how_a_run_ends(store, tmp_path, error, status):
    tracker = Tracker(tmp_path, uri=store, experiment="e", run_name="r", tags={"a": 1}, parameters={"x.y": 2.5})
    try:
        with tracker:
            tracker.log({"m": 1.0}, 3)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, SystemExit) as caught:
        assert caught is error  # noqa: PT017 - it may also not be raised
    found = MlflowClient(tracking_uri=store).get_run(tracker.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"m": 1.0}
    assert found.data.params == {"x.y": "2.5"}


def test_more_metrics_than_one_call_carries(store, tmp_path):
    with Tracker(tmp_path, uri=store, experiment="e", run_name="r", tags={}, parameters={}) as tracker:
        for step in range(700):
            tracker.log({"a": step, "b": -step, "c": 2 * step}, step)  # 3 do not divide what a call carries
    client = MlflowClient(tracking_uri=store)
    for name, factor in (("a", 1), ("b", -1), ("c", 2)):
        assert history(client, tracker.run_id, name) == [(step, factor * step) for step in range(700)]


def test_where_artifacts_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert artifact_location(None) == (tmp_path / "runs" / "mlartifacts").as_uri()
    assert artifact_location(f"sqlite:///{tmp_path}/a/b.db") == (tmp_path / "a" / "mlartifacts").as_uri()
    assert artifact_location("sqlite:///b.db") == (tmp_path / "mlartifacts").as_uri()
    assert artifact_location("postgresql://me@host/db") == (tmp_path / "runs" / "mlartifacts").as_uri()
    assert artifact_location("http://127.0.0.1:5000") is None


def test_the_working_directory_may_vanish(tmp_path, monkeypatch):
    """The process that sends outlives the directory that it was started from."""
    monkeypatch.setattr(SenderProcess, "_shared", None)
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert StoreCheck("sqlite:///../one.db").wait() is None
    monkeypatch.chdir(tmp_path)
    folder.rmdir()
    assert StoreCheck("sqlite:///two.db").wait() is None
    assert (tmp_path / "one.db").exists()
    assert (tmp_path / "two.db").exists()


def test_seeds_share_a_colour_and_models_do_not():
    names = ["softmax replay", "ovq-sequence replay", "ovq-stream replay"]
    colours = [{run_color(f"{name} seed {seed}") for seed in range(3)} for name in names]
    assert all(len(shared) == 1 for shared in colours)
    assert len(set.union(*colours)) == 3
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for shared in colours for colour in shared)


def test_a_run_interrupted_before_its_first_checkpoint_is_one_row(store, tiny, tmp_path):
    class Interrupt(Callback):
        def run_begin(self, run):
            raise KeyboardInterrupt

    def go(*callbacks):
        tracking = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=one row")
        config = tiny(*tracking, "tracking.log_model=false", f"output_dir={tmp_path / 'run'}")
        return run_experiment(config, Console(file=io.StringIO()), resume=True, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        go(Interrupt())
    result = go()
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("one row").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
