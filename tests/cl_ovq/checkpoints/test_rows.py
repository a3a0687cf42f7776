"""Runs that are evaluated after some experiences only: what is measured is what a run without gaps measures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from quick_settings import quick
from resume_helpers import Killed, killed_at
from rich.console import Console

from cl_ovq.comparison.figures import average_figure
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import all_metrics, by_age
from cl_ovq.report.runs import matrix_table
from cl_ovq.runs.callbacks import Callback
from cl_ovq.runs.groups import Group
from cl_ovq.runs.run import run_experiment

FIVE = ("stream.experiences=5", "stream.validation_fraction=0.9", "strategy.batch_size=64")
METHODS = {
    "replay": ("model.dropout=0.1",),
    "ewc": quick("ewc", "model.dropout=0.1"),
    "ncm": quick("ncm"),
}


class Seen(Callback):
    """Keeps the metrics after each experience."""

    def __init__(self):
        self.metrics = []

    def experience_end(self, run, row):
        self.metrics.append(dict(run.metrics))


def silent(config, **more):
    return run_experiment(config, Console(file=io.StringIO()), **more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [[2, 3], [0, 1], [5]])
def test_rows_are_those_of_a_run_without_gaps(tiny, run, tmp_path, method, rows):
    overrides = (*METHODS[method], *FIVE)
    whole, seen = run(*overrides), Seen()
    config = tiny(*overrides, f"evaluation.rows={rows}", f"output_dir={tmp_path / 'run'}")
    some = silent(config, callbacks=[seen])
    measured = {*rows, 5}
    for name in ("loss", "task_masked_accuracy", None):
        found, expected = some.to_numpy(name), whole.to_numpy(name)
        for row in range(6):
            if row in measured:
                assert np.array_equal(found[row], expected[row])
            else:
                assert np.isnan(found[row]).all()
    assert some.metrics["accuracy"] == whole.metrics["accuracy"]
    assert some.metrics["forgetting"] is some.metrics["learning_accuracy"] is None
    assert some.metrics["average_incremental_accuracy"] is some.metrics["forward_transfer"] is None
    assert [bool(metrics) for metrics in seen.metrics] == [row in measured for row in range(1, 6)]
    for row, metrics in enumerate(seen.metrics, start=1):
        if metrics:
            assert metrics["accuracy"] == pytest.approx(whole.to_numpy()[row, :row].mean())
    for age, value in enumerate(some.by_age):
        values = [whole.matrix[row][row - age - 1] for row in measured if row > age]
        assert value == (pytest.approx(np.mean(values)) if values else None)


def test_forgetting_of_rows_that_are_all_there_is_known():
    """It needs the rows from the first on, and not the one before training."""
    matrix = np.random.default_rng(0).random((5, 4))
    expected = all_metrics(matrix)
    matrix[0] = np.nan
    assert all_metrics(matrix) == expected | {"forward_transfer": None}
    matrix[2] = np.nan
    assert all_metrics(matrix)["forgetting"] is None
    assert by_age(matrix)[3] == matrix[4, 0]


def test_a_run_that_is_killed_goes_on_with_its_gaps(tiny, run, tmp_path):
    overrides = (*FIVE, "evaluation.rows=[2]")
    whole = run(*overrides)
    config = tiny(*overrides, f"output_dir={tmp_path}", "checkpoint.every_steps=1")
    for kill in (3, whole.provenance["train_steps"]):
        with killed_at(kill), pytest.raises(Killed):
            silent(config, resume=True)
    again = silent(config, resume=True)
    assert (again.matrix, again.matrices, again.metrics) == (whole.matrix, whole.matrices, whole.metrics)
    with pytest.raises(UserError, match=r"evaluation\.rows"):
        silent(tiny(*FIVE, "evaluation.rows=[3]", f"output_dir={tmp_path}"), resume=True)


def test_tables_and_figures_show_what_was_measured(run):
    some, whole = run(*FIVE, "evaluation.rows=[2]"), run(*FIVE)
    first = [line.split("|")[1].strip() for line in matrix_table(some).to_markdown().splitlines() if "after" in line]
    assert first == ["after 2", "after 5"]
    assert matrix_table(whole).to_markdown().count("after") == 5
    axes = average_figure([Group("some", {0: some}), Group("whole", {0: whole})], "accuracy").axes[0]
    short, long = (line.get_xydata() for line in axes.lines)
    assert short[:, 0].tolist() == [2, 5]
    assert np.array_equal(short, long[[1, 4]])


def test_what_is_learned_at_once_has_no_rows(tiny):
    with pytest.raises(UserError, match=r"^evaluation\.rows: joint training"):
        silent(tiny("strategy.name=joint", "evaluation.rows=[1]"))


def test_rows_beyond_the_end_that_a_protocol_sets_are_left_out(run):
    part = run(*FIVE, "evaluation.rows=[1,4]", "evaluation.stop_after=2")
    measured = [any(value is not None for value in row) for row in part.matrix]
    assert measured == [False, True, True]
