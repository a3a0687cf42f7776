"""A finished run that is asked for further lengths or capacities: only these are measured, and nothing is trained."""

import dataclasses
import io
import json
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from rich.console import Console

from cl_ovq.config import load_config, to_dict
from cl_ovq.config.identity import identity
from cl_ovq.errors import UserError
from cl_ovq.evaluation import length_generalization as measuring
from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.runs.result import Result
from cl_ovq.runs.reuse import copy_run
from cl_ovq.runs.run import run_experiment

RECALL = """
stream: {name: recall, experiences: 2, length: 16, pairs: 2, keys: 8, values: 4, train: 30, validation: 6, test: 6}
model: {name: sequence_model, width: 8, depth: 1, heads: 1}
dictionary: {scope: sequence, capacity: 8, chunk_size: 4}
strategy: {batch_size: 10}
evaluation: {length_tokens: 300}
figures: false
tracking: {enabled: false}
"""
PARTS = ("matrix", "matrices", "metrics", "dictionary", "lengths", "capacities", "quantity", "diverged")
BEFORE = ("evaluation.lengths=[16]",)
AFTER = ("evaluation.lengths=[64,16]", "evaluation.capacities=[2,8]")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """`experiment(folder, *overrides)`: the configuration of a run in a folder."""
    path = tmp_path_factory.mktemp("recall") / "recall.yaml"
    path.write_text(RECALL)
    return lambda folder, *overrides: load_config(path, [f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def of(experiment, tmp_path_factory):
    """`of(*overrides)`: the result of a run that was asked for this from the start."""
    found = {}

    def of(*overrides):
        if overrides not in found:
            found[overrides] = run_experiment(experiment(tmp_path_factory.mktemp("whole"), *overrides), quiet())
        return found[overrides]

    return of


@pytest.fixture
def finished(of, tmp_path):
    """The directory of a finished run that was asked for one length."""
    copy_run(Path(of(*BEFORE).output_dir), tmp_path / "run")
    return tmp_path / "run"


def quiet():
    return Console(file=io.StringIO(), width=500)


def resume(config):
    """Go on with a finished run; return its result, what was said, and what was measured: lengths, training steps."""
    console = quiet()
    with noted() as (lengths, steps):
        result = run_experiment(config, console, resume=True)
    return result, console.file.getvalue(), lengths, steps


@contextmanager
def noted():
    measure, step, lengths, steps = measuring.evaluate_lengths, Checkpoints.after_training_iteration, [], []

    def evaluate_lengths(model, stream, asked, *amount):
        lengths.extend(asked)
        return measure(model, stream, asked, *amount)

    def after_training_iteration(self, strategy, **kwargs):
        steps.append(strategy.clock.train_iterations)
        step(self, strategy, **kwargs)

    with (
        patch.object(measuring, "evaluate_lengths", evaluate_lengths),
        patch.object(Checkpoints, "after_training_iteration", after_training_iteration),
    ):
        yield lengths, steps


def assert_same(result, whole):
    for part in PARTS:
        assert getattr(result, part) == getattr(whole, part), part


def test_only_what_is_missing_is_measured(experiment, of, finished):
    config = experiment(finished, *AFTER)
    result, said, lengths, steps = resume(config)
    assert_same(result, of(*AFTER))
    assert lengths == [64, 64, 16, 64, 16]  # once, and with each capacity
    assert not steps
    assert f"the run in {finished} is already finished: evaluating its model with the new evaluation.lengths" in said
    assert said.count("\n") == 2
    assert Result.read(finished) == result
    assert identity(result.config) == identity(to_dict(config))
    assert yaml.safe_load((finished / "config.yaml").read_text())["evaluation"]["lengths"] == [64, 16]
    again, said, lengths, _ = resume(config)
    assert (again, lengths) == (result, [])
    assert "is already finished: this is its result" in said


def test_its_provenance_is_that_of_its_training(experiment, of, finished):
    before = Result.read(finished).provenance
    after = resume(experiment(finished, *AFTER))[0].provenance
    assert {key: value for key, value in after.items() if key != "evaluated"} == before
    assert [record.keys() for record in after["evaluated"]] == [{"code", "imports", "device", "finished"}]
    more = resume(experiment(finished, "evaluation.lengths=[32]"))[0].provenance
    assert len(more["evaluated"]) == 2


def test_other_tokens_or_another_scale_are_measured_anew(experiment, of, finished):
    for change in ("evaluation.length_tokens=500", "evaluation.log_length_scaling=true"):
        result, _, lengths, _ = resume(experiment(finished, *BEFORE, change))
        assert lengths == [16]
        assert_same(result, of(*BEFORE, change))


def test_fewer_lengths_need_no_model(experiment, of, finished):
    resume(experiment(finished, *AFTER))
    (finished / "checkpoint.bin").unlink()
    result, _, lengths, _ = resume(experiment(finished, *BEFORE))
    assert_same(result, of(*BEFORE))
    assert (lengths, Result.read(finished).lengths) == ([], result.lengths)


def test_without_a_checkpoint_one_line_says_what_to_do(experiment, finished):
    (finished / "checkpoint.bin").unlink()
    before = (finished / "results.json").read_bytes()
    with pytest.raises(UserError) as error:
        resume(experiment(finished, *AFTER))
    assert str(error.value) == (
        f"{finished / 'results.json'} was measured with other values of evaluation.lengths, evaluation.capacities, and "
        "there is no checkpoint with a model to evaluate: rerun with --overwrite and checkpoint.enabled=true"
    )
    assert (finished / "results.json").read_bytes() == before


def test_what_is_recorded_while_training_goes_on_is_still_refused(experiment, finished):
    with pytest.raises(UserError, match=r"evaluation\.dictionary_every is 1 in the checkpoint, but 2 now"):
        resume(experiment(finished, *AFTER, "evaluation.dictionary_every=2"))


class Killed(Exception):
    pass


def test_an_unfinished_run_goes_on_with_other_lengths(experiment, of, tmp_path):
    own = Checkpoints.after_training_iteration

    def kill(self, strategy, **kwargs):
        own(self, strategy, **kwargs)
        if strategy.clock.train_iterations == 4:
            raise Killed

    with patch.object(Checkpoints, "after_training_iteration", kill), pytest.raises(Killed):
        run_experiment(experiment(tmp_path, *BEFORE), quiet())
    result, said, _, steps = resume(experiment(tmp_path, *AFTER))
    assert "resumed after 1 of 2 experiences" in said
    assert steps == [4, 5, 6]
    assert_same(result, of(*AFTER))


def test_a_run_that_diverged_has_no_model_to_measure(experiment, of, finished):
    result = Result.read(finished)
    matrix = [[*row] for row in result.matrix]
    matrix[-1] = [None, None]
    lost = {"experience": 2, "step": 5, "reason": "the loss is nan"}
    dataclasses.replace(result, matrix=matrix, lengths=[], diverged=lost).write(finished)
    found, _, lengths, steps = resume(experiment(finished, *AFTER))
    assert (found.diverged, found.lengths, lengths, steps) == (lost, [], [], [])
    assert identity(found.config) == identity(to_dict(experiment(finished, *AFTER)))


def test_a_run_that_failed_at_a_length_is_whole_without_it(experiment, of, finished):
    result = Result.read(finished)
    reason = {"experience": 2, "step": 6, "reason": "the outputs for sequences of 16 tokens are not numbers"}
    dataclasses.replace(result, lengths=[], diverged=reason).write(finished)
    assert_same(resume(experiment(finished))[0], of())


def test_mlflow_gets_the_new_numbers(experiment, of, tmp_path, store):
    from cl_ovq.tracking import open_client

    tracked = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=completed")
    first = run_experiment(experiment(tmp_path / "run", *BEFORE, *tracked), quiet())
    again = resume(experiment(tmp_path / "run", *AFTER, *tracked))[0]
    assert again.run_id == first.run_id
    client = open_client(store)
    metrics = client.get_run(first.run_id).data.metrics
    for record in again.lengths:
        assert metrics[f"accuracy/tokens_{record['tokens']}"] == pytest.approx(record["value"])
    for record in again.capacities:
        name = f"accuracy/tokens_{record['tokens']}/capacity_{record['capacity']}"
        assert metrics[name] == pytest.approx(record["value"])
    file = client.download_artifacts(first.run_id, "results.json", str(tmp_path))
    assert json.loads(Path(file).read_text())["lengths"] == again.lengths
    # Another tracked run that starts from it has an MLflow run of its own, with all that was found.
    copy_run(tmp_path / "run", tmp_path / "copy")
    changed = resume(experiment(tmp_path / "copy", *AFTER, *tracked, "evaluation.length_tokens=500"))[0]
    assert changed.run_id not in (None, first.run_id)
    found = client.get_run(changed.run_id).data.metrics
    assert found["accuracy"] == pytest.approx(first.metrics["accuracy"])
    assert found["accuracy/tokens_64"] == pytest.approx(changed.lengths[0]["value"])
