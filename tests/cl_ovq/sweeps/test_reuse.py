"""Runs that a trial takes from a folder, whole or as the model from which it measures more."""

import io
from unittest.mock import patch

import pytest
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.runs.reuse import FinishedRuns
from cl_ovq.runs.run import run_experiment
from cl_ovq.sweeps.trials import Job

RECALL = """
stream: {name: recall, experiences: 1, shift: none, length: 16, pairs: 2, keys: 8, values: 4, train: 30, test: 6}
model: {name: sequence_model, width: 8, depth: 1, heads: 1}
dictionary: {scope: sequence, capacity: 8, chunk_size: 4}
strategy: {batch_size: 10}
evaluation: {length_tokens: 200}
figures: false
tracking: {enabled: false}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("recall") / "recall.yaml"
    path.write_text(RECALL)
    return lambda folder, *overrides: load_config(path, [f"output_dir={folder}", *overrides])


@pytest.mark.parametrize(
    ("asked", "steps", "reused"),
    [([], 0, True), (["evaluation.lengths=[64]"], 0, True), (["optimizer.learning_rate=1e-4"], 3, False)],
    ids=["same", "trained alike", "another"],
)
def test_what_a_trial_takes(experiment, tmp_path, asked, steps, reused):
    stored = run_experiment(experiment(tmp_path / "stored"), Console(file=io.StringIO()))
    before = (tmp_path / "stored" / "results.json").read_bytes()
    (tmp_path / "stored" / "damaged").mkdir()
    (tmp_path / "stored" / "damaged" / "results.json").write_text("{")
    job = Job(None, str(tmp_path), {}, None, FinishedRuns.under(tmp_path / "stored"))
    own, made = Checkpoints.after_training_iteration, []

    def note(self, strategy, **kwargs):
        made.append(strategy.clock.train_iterations)
        own(self, strategy, **kwargs)

    with patch.object(Checkpoints, "after_training_iteration", note):
        result, report = job.run(experiment(tmp_path / "trial", *asked))
    assert (len(made), report["reused"]) == (steps, reused)
    assert [record["tokens"] for record in result.lengths] == ([64] if "lengths" in "".join(asked) else [])
    assert result.output_dir == str(tmp_path / ("trial" if asked else "stored"))
    if reused:
        assert result.matrix == stored.matrix
    assert (tmp_path / "stored" / "results.json").read_bytes() == before
