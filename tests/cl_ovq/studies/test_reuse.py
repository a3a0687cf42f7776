"""Runs of a study that differ only in what is measured on the finished model: they are trained once."""

from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from rich.console import Console
from study_helpers import results, run

from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.runs.result import Result
from cl_ovq.studies import load_study, only, run_study
from cl_ovq.studies.runs import _Tasks

RECALL = """
stream: {name: recall, experiences: 1, shift: none, length: 16, pairs: 2, keys: 8, values: 4, train: 30, test: 6}
model: {name: sequence_model, width: 8, depth: 1, heads: 1}
dictionary: {scope: sequence, capacity: 8, chunk_size: 4}
strategy: {batch_size: 10}
evaluation: {lengths: [16], length_tokens: 200}
figures: false
tracking: {enabled: false}
"""
STEPS = 3  # of training
STUDY = """
title: Scales
seeds: 2
set: {{threads: 1, checkpoint.enabled: {checkpoint}}}
grids:
- task:
    recall: {{experiment: {recall}}}
  scale:
    plain: {{evaluation.lengths: {lengths}}}
{more}
"""
SCALED = "    scaled: {evaluation.log_length_scaling: true, evaluation.lengths: [16, 64]}"
PARTS = ("matrix", "metrics", "dictionary", "lengths", "capacities")


@pytest.fixture
def file(tmp_path):
    """`file(more, lengths=, checkpoint=)`: the study, with further rows."""
    (tmp_path / "recall.yaml").write_text(RECALL)

    def file(more="", lengths="[16]", checkpoint="true"):
        path = tmp_path / "scales.yaml"
        path.write_text(
            STUDY.format(recall=tmp_path / "recall.yaml", more=more, lengths=lengths, checkpoint=checkpoint)
        )
        return path

    return file


@contextmanager
def trained():
    """The training steps that are made."""
    own, steps = Checkpoints.after_training_iteration, []

    def note(self, strategy, **kwargs):
        steps.append(strategy.clock.train_iterations)
        own(self, strategy, **kwargs)

    with patch.object(Checkpoints, "after_training_iteration", note):
        yield steps


def apart(file, folder, more=""):
    """The results of every row of a study whose rows are run in folders of their own."""
    path = file(more)
    labels = ["plain", "scaled"] if more else ["plain"]
    return [
        run_study(only(load_study(str(path)), [label]), folder / label, Console(quiet=True)).rows[0].runs
        for label in labels
    ]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for part in PARTS:
            assert getattr(one, part) == getattr(other, part), part


def test_rows_that_differ_only_in_evaluation_share_their_training(file, tmp_path):
    expected = apart(file, tmp_path / "apart", SCALED)
    with trained() as steps:
        result, _ = run(file(SCALED, checkpoint="false"), tmp_path / "runs")
    assert len(steps) == 2 * STEPS  # two seeds, and not four runs
    assert len(results(tmp_path / "runs")) == 4
    for row, wanted in zip(result.rows, expected, strict=True):
        assert_same(row.runs, wanted)
        assert [one.config["evaluation"]["log_length_scaling"] for one in row.runs] == [row is result.rows[1]] * 2
        assert len({Path(one.output_dir).parent for one in row.runs}) == 1
    assert len({Path(row.runs[0].output_dir).parent for row in result.rows}) == 2  # each row has its own runs
    with trained() as steps:
        again, _ = run(file(SCALED, checkpoint="false"), tmp_path / "runs")
    assert not steps
    for row, wanted in zip(again.rows, result.rows, strict=True):
        assert_same(row.runs, wanted.runs)


def test_who_shares_a_training_waits_for_it(file, tmp_path):
    tasks = _Tasks(load_study(str(file(SCALED))), tmp_path / "runs")
    plain, scaled = ([task for task in tasks.own if task.row == row] for row in (0, 1))
    assert next(tasks.ready())[0] == plain[0]
    assert [task for task, _ in tasks.ready()] == [plain[1]]  # each seed is a training of its own
    tasks.finish(plain[0], "it failed")
    assert [task for task, _ in tasks.ready()] == [scaled[0]]


def test_a_further_length_is_measured_in_place(file, tmp_path):
    run(file(), tmp_path / "runs")
    before = results(tmp_path / "runs")
    with trained() as steps:
        result, _ = run(file(lengths="[16, 64]"), tmp_path / "runs")
    assert not steps
    assert [[record["tokens"] for record in one.lengths] for one in result.rows[0].runs] == [[16, 64]] * 2
    after = results(tmp_path / "runs")
    assert len(after) == len(before) == 2
    assert not after.keys() & before.keys()  # a directory is named after all that decides its numbers
    for path in after:
        assert Result.read(path).output_dir == str(path.parent)


def test_a_run_that_another_row_wants_stays_as_it_is(file, tmp_path):
    run(file(), tmp_path / "runs")
    before = results(tmp_path / "runs")
    with trained() as steps:
        run(file(SCALED), tmp_path / "runs")
    assert not steps
    after = results(tmp_path / "runs")
    assert {path: after.get(path) for path in before} == before
    assert len(after) == 4


def test_points_of_a_grid_share_their_training_and_keep_their_runs(file, tmp_path):
    text = file().read_text() + (
        "tuning: {seeds: [7], over_lengths: true, grid: {evaluation.log_length_scaling: [false, true]}}\n"
    )
    (tmp_path / "grid.yaml").write_text(text)
    with trained() as steps:
        run(tmp_path / "grid.yaml", tmp_path / "runs", "seeds=1")
    assert len(steps) == 2 * STEPS  # on validation data and on test data
    assert len(results(tmp_path / "runs")) == 3
    with trained() as steps:
        run(tmp_path / "grid.yaml", tmp_path / "runs", "seeds=1")
    assert not steps


def test_without_a_checkpoint_it_is_trained(file, tmp_path):
    run(file(checkpoint="false"), tmp_path / "runs")
    with trained() as steps:
        result, _ = run(file(lengths="[16, 64]", checkpoint="false"), tmp_path / "runs")
    assert len(steps) == 2 * STEPS
    assert not result.failed
    assert [[record["tokens"] for record in one.lengths] for one in result.rows[0].runs] == [[16, 64]] * 2


def test_a_shared_training_that_fails_does_not_stop_the_study(file, tmp_path):
    own = Checkpoints.after_training_iteration

    def fail(self, strategy, **kwargs):
        own(self, strategy, **kwargs)
        if not failed:
            failed.append(strategy.clock.train_iterations)
            raise RuntimeError("no more")

    failed = []
    with patch.object(Checkpoints, "after_training_iteration", fail):
        result, said = run(file(SCALED), tmp_path / "runs", "seeds=1")
    assert "no more" in said
    assert [row.labels["scale"] for row in result.rows] == ["scaled"]
