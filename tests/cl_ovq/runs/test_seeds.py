"""Several seeds of one experiment."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from rich.console import Console
from scipy import stats

from cl_ovq.errors import UserError
from cl_ovq.evaluation.aggregates import aggregate
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.seeds import run_seeds
from cl_ovq.tracking.view import COMPARED as SUMMARY

QUICK = ("model.name=pixels", "model.head=memory", "memory.capacity=50", "strategy.name=naive")


@pytest.fixture(scope="module")
def three(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    config = tiny(*QUICK, "seeds=3", "seed=4", f"output_dir={folder}")
    return run_seeds(config, Console(file=io.StringIO())), folder


def test_each_seed_is_the_run_that_it_is_alone(three, tiny, tmp_path):
    result, folder = three
    assert [run.config["seed"] for run in result.runs] == [4, 5, 6]
    assert [run.output_dir for run in result.runs] == [str(folder / f"seed_{seed}") for seed in (4, 5, 6)]
    alone = run_experiment(tiny(*QUICK, "seed=5", f"output_dir={tmp_path}"), Console(file=io.StringIO()))
    assert alone.matrix == result.runs[1].matrix
    assert result.runs[0].matrix != result.runs[1].matrix


def test_their_mean_matrix_is_drawn_if_asked_for(three, tiny, tmp_path):
    _, folder = three
    assert not (folder / "matrix.png").exists()
    config = tiny(*QUICK, "seeds=2", f"output_dir={tmp_path / 'two'}", "figures=true", "figure_format=svg")
    run_seeds(config, Console(file=io.StringIO()))
    assert (tmp_path / "two" / "matrix.svg").read_text().startswith("<?xml")


def test_metrics_are_aggregated(three):
    result, folder = three
    for name in ("accuracy", "forgetting"):
        values = [run.metrics[name] for run in result.runs]
        found = result.metrics[name]
        assert found.mean == pytest.approx(np.mean(values))
        assert found.standard_deviation == pytest.approx(np.std(values, ddof=1))
        low, _ = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert found.mean - found.interval == pytest.approx(low)
        assert found.seeds == 3
    assert json.loads((folder / "seeds.json").read_text()) == json.loads(result.to_json())


def test_in_mlflow_a_parent_carries_the_aggregates(tiny, store, tmp_path):
    overrides = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=seeds")
    config = tiny(*QUICK, *overrides, "seeds=2", f"output_dir={tmp_path}")
    whole = run_seeds(config, Console(file=io.StringIO()))
    client = MlflowClient(tracking_uri=store)
    found = client.search_runs([client.get_experiment_by_name("seeds").experiment_id])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in found if run not in children]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.run_id for run in children} == {result.run_id for result in whole.runs}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert parent.info.run_name == "pixels-memory naive seeds 0-1"
    assert (parent.data.tags["seed"], parent.data.tags["seeds"]) == ("0-1", "2")
    for name, mean in whole.metrics.items():
        assert parent.data.metrics[name] == pytest.approx(mean.mean)
        assert parent.data.metrics[f"{name}/interval"] == pytest.approx(mean.interval)
    assert set(SUMMARY) <= set(parent.data.metrics)
    note = parent.data.tags["mlflow.note.content"]
    assert f"| average accuracy | {whole.metrics['accuracy'].mean:.3f} |" in note
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["seeds.json"]


def test_results_are_not_overwritten(three, tiny):
    _, folder = three
    with pytest.raises(UserError, match="already holds"):
        run_seeds(tiny(*QUICK, "seeds=3", "seed=4", f"output_dir={folder}"), Console(file=io.StringIO()))


def test_one_value_has_no_spread():
    found = aggregate([0.5])
    assert (found.mean, found.standard_deviation, found.interval, found.seeds) == (0.5, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        aggregate([])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-5, 5))
def test_a_shift_moves_the_mean_alone(values, shift):
    before, after = aggregate(values), aggregate([value + shift for value in values])
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.interval == pytest.approx(before.interval, abs=1e-9)


@pytest.mark.slow  # every process imports for ten seconds
def test_seeds_in_processes_of_their_own_are_the_same_and_children_too(three, tiny, store, tmp_path):
    overrides = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=seeds at once")
    config = tiny(*QUICK, *overrides, "seeds=3", "seed=4", f"output_dir={tmp_path}")
    whole = run_seeds(config, Console(file=io.StringIO()), jobs=2)
    assert [run.matrix for run in whole.runs] == [run.matrix for run in three[0].runs]
    client = MlflowClient(tracking_uri=store)
    found = client.search_runs([client.get_experiment_by_name("seeds at once").experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.tags.get("mlflow.parentRunId") for run in found].count(parent.info.run_id) == 3


def test_one_seed_is_one_job(call, tiny_path):
    code, _, error = call("run", tiny_path, "--jobs", 2)
    assert (code, error) == (
        2,
        "error: --jobs: with seeds=1 there is only one run: remove --jobs, or set e.g. seeds=5\n",
    )
