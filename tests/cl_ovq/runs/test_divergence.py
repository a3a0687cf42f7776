"""A run that diverges ends at once, is a result with what it has, and is not to be overlooked anywhere."""

import io
import json
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cl_ovq.comparison import compare
from cl_ovq.comparison.figures import all_figures
from cl_ovq.comparison.lengths import lengths_of
from cl_ovq.comparison.pages import to_json, to_table
from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.evaluation import figures
from cl_ovq.evaluation.matrix import MatrixRecorder
from cl_ovq.mixers import dictionaries
from cl_ovq.models.sequence import SequenceModel
from cl_ovq.report.runs import seeds_table, summary_table
from cl_ovq.runs import seeds
from cl_ovq.runs.groups import Group
from cl_ovq.runs.result import Result
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.seeds import run_seeds
from cl_ovq.tracking import open_client
from cl_ovq.tracking.notes import seeds_note
from cl_ovq.training.divergence import DivergedError

WILD = ("figures=true", "optimizer.name=sgd", "optimizer.learning_rate=1e15", "strategy.name=naive")
REGRESSION = """
stream: {name: regression, experiences: 2, shift: none, train: 64, validation: 0, test: 8, examples: 6, questions: 4}
model: {name: sequence_model, mixer: softmax, width: 16, depth: 1, heads: 2}
strategy: {name: naive, batch_size: 16}
optimizer: {name: sgd, learning_rate: 1e6}
evaluation: {lengths: [32], length_tokens: 64}
tracking: {enabled: false}
"""


@pytest.fixture(scope="module")
def lost(run):
    """A run with a dictionary that diverged in its first experience."""
    return run(*WILD)


def printed(*what, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(*what)
    return console.file.getvalue()


@pytest.mark.parametrize("model", ["model.mixer=ovq", "model.mixer=softmax", "model.name=mlp"])
def test_a_diverged_run_has_the_rows_that_it_has(run, model):
    result = run(*WILD, model)
    assert result.diverged["experience"] == 1
    assert "is nan" in result.diverged["reason"] or "not finite" in result.diverged["reason"]
    assert 1 <= result.diverged["step"] <= result.provenance["train_steps"] + 1 < 20  # at once, of some 40 steps
    for matrix in (result.matrix, *result.matrices.values()):
        assert None not in matrix[0]
        assert matrix[1:] == [[None, None], [None, None]]
    assert result.metrics["accuracy"] is None
    folder = Path(result.output_dir)
    assert json.loads((folder / "results.json").read_text()) == json.loads(result.to_json())
    assert Result.read(folder) == result
    assert {path.name for path in folder.iterdir()} == set(result.artifacts.values())
    assert "matrix" in result.artifacts


def test_regression_diverges_too_and_is_not_evaluated_at_other_lengths(tmp_path):
    (tmp_path / "regression.yaml").write_text(REGRESSION)
    config = load_config(tmp_path / "regression.yaml", [f"output_dir={tmp_path / 'run'}"])
    result = run_experiment(config, Console(file=io.StringIO()))
    assert result.diverged
    assert result.metrics["squared_error"] is None
    assert result.lengths == []
    assert Result.read(tmp_path / "run") == result


def test_answers_that_are_not_numbers_at_another_length_are_not_taken_for_hits(tmp_path, monkeypatch):
    """NaN stands for a token without a target there, and `argmax` takes it for class 0."""
    (tmp_path / "regression.yaml").write_text(REGRESSION)
    overrides = ["optimizer.learning_rate=1e-3", f"output_dir={tmp_path / 'run'}"]
    whole = SequenceModel.forward_with_state

    def beyond(self, x, *args, **kwargs):
        outputs, states = whole(self, x, *args, **kwargs)
        return outputs.masked_fill(torch.arange(x.shape[1]) > 20, torch.nan), states

    monkeypatch.setattr(SequenceModel, "forward_with_state", beyond)
    result = run_experiment(load_config(tmp_path / "regression.yaml", overrides), Console(file=io.StringIO()))
    assert result.diverged["reason"] == "the outputs for sequences of 32 tokens are not numbers"
    assert result.diverged["step"] == result.provenance["train_steps"]
    assert result.metrics["squared_error"] is not None
    assert result.lengths == []


def test_later_experiences_that_were_learned_count(tiny, tmp_path, monkeypatch):
    """Whatever breaks the weights, in the last step of the second of three experiences: the first one's row stays."""
    steps = []

    class Breaking(MatrixRecorder):
        STATE = ()

        def after_training_iteration(self, strategy):
            steps.append(strategy.clock.train_iterations)
            if (
                strategy.clock.train_exp_counter == 1
                and strategy.clock.train_exp_iterations == len(strategy.dataloader) - 1
            ):
                next(strategy.model.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr("cl_ovq.evaluation.matrix.MatrixRecorder", Breaking)
    overrides = ("stream.experiences=3", "evaluation.every_steps=10", f"output_dir={tmp_path / 'run'}")
    result = run_experiment(tiny(*overrides), Console(file=io.StringIO()))
    assert result.diverged["experience"] == 2
    assert result.diverged["step"] == len(steps) == result.provenance["train_steps"]
    assert [None in row for row in result.matrix] == [False, False, True, True]
    assert result.metrics["average_anytime_accuracy"] is result.metrics["worst_case_accuracy"] is None
    assert result.metrics["forward_transfer"] is None
    assert result.anytime
    assert all(np.isfinite(point["values"]).all() for point in result.anytime)


def test_the_step_that_diverges_changes_nothing(session):
    made = session("strategy.name=naive")
    before = {}

    class Poison:
        def before_forward(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 2:
                strategy.mbatch[0] = strategy.mbatch[0] * torch.nan
                before.update({name: tensor.clone() for name, tensor in strategy.model.state_dict().items()})

        def __getattr__(self, name):
            if name.startswith(("before_", "after_")):
                return lambda *args, **kwargs: None
            raise AttributeError(name)

    with pytest.raises(DivergedError, match=r"^training diverged in step 3 \(experience 1\): the loss is nan$"):
        made.learn(Poison())
    assert any("dictionary" in name for name in before)
    assert dictionaries(made.model)
    for name, tensor in made.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_outputs_that_are_not_numbers_are_no_accuracy(session):
    """The accuracy of NaN is that of class 0, by `argmax`."""
    recorder = MatrixRecorder(((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)))
    made = session("strategy.name=naive", "model.name=mlp", metrics=(recorder,))
    made.strategy.eval(made.test)
    next(made.model.parameters()).data.fill_(torch.nan)
    recorder.row = 1
    with pytest.raises(DivergedError, match="the loss on test experience 1 is nan"):
        made.strategy.eval(made.test)
    for matrix in recorder.result().values():
        assert np.isfinite(matrix[0]).all()
        assert np.isnan(matrix[1]).all()


def test_a_figure_that_fails_is_a_warning(tiny, tmp_path, monkeypatch):
    def fail(*args):
        assert Result.read(tmp_path / "run").matrix[-1][0] is not None  # the results are written already
        raise ValueError("no [such]\ncolour")

    monkeypatch.setattr(figures, "entries_figure", fail)
    console = Console(file=io.StringIO(), width=200)
    result = run_experiment(tiny("figures=true", f"output_dir={tmp_path / 'run'}"), console)
    lines = [line for line in console.file.getvalue().splitlines() if "figure" in line]
    assert lines == ["figure: dictionary_entries.png was not drawn: no [such] colour"]
    assert "dictionary_entries" not in result.artifacts
    assert "dictionary_owners" in result.artifacts
    assert Result.read(tmp_path / "run") == result
    assert result.diverged is None


def test_the_command_line_cannot_be_overlooked(call, tiny_path, tmp_path):
    arguments = ("run", tiny_path, *WILD, f"output_dir={tmp_path / 'run'}")
    code, out, err = call(*arguments)
    assert code == 3
    last = err.splitlines()[-1]
    assert last.startswith("ovq-stream naive seed 0 diverged in step ")
    assert "diverged" in out
    code, out, err = call(*arguments, "--json", "--resume")
    assert code == 3
    assert json.loads(out)["diverged"]["experience"] == 1
    assert err.splitlines()[-1] == last


def test_seeds_that_diverged_are_in_no_mean(run, lost, tiny, tmp_path, monkeypatch, call, tiny_path):
    sound = {seed: run(f"seed={seed}", "strategy.name=naive") for seed in (0, 1)}
    prepared = {**sound, 2: replace(lost, config=lost.config | {"seed": 2}, provenance=lost.provenance | {"seed": 2})}

    def take(config, *args, **kwargs):
        Path(config.output_dir).mkdir(parents=True)
        prepared[config.seed].write(Path(config.output_dir))

    monkeypatch.setattr(seeds, "run_experiment", take)
    whole = run_seeds(tiny("seeds=3", f"output_dir={tmp_path / 'seeds'}"), Console(file=io.StringIO()))
    assert whole.diverged == [2]
    assert whole.metrics["accuracy"].seeds == 2
    assert whole.metrics["wall_seconds"].mean == pytest.approx(
        np.mean([result.provenance["wall_seconds"] for result in sound.values()])
    )
    assert json.loads((tmp_path / "seeds" / "seeds.json").read_text())["diverged"] == [2]
    assert "3 seeds, of which 1 diverged and are in no mean" in printed(seeds_table(whole.metrics, whole.runs))
    assert "Seed 2 diverged in step" in seeds_note(whole.metrics, whole.runs)
    code, _, err = call("run", tiny_path, "seeds=3", f"output_dir={tmp_path / 'again'}")
    assert code == 3
    assert "diverged in step" in err.splitlines()[-1]


def test_all_seeds_may_diverge(tiny, tmp_path):
    whole = run_seeds(tiny(*WILD, "seeds=2", f"output_dir={tmp_path}"), Console(file=io.StringIO()))
    assert (whole.diverged, whole.metrics) == ([0, 1], {})
    printed(seeds_table(whole.metrics, whole.runs))


def test_compare_leaves_diverged_runs_out_and_says_so(run, lost):
    sound = {seed: run(f"seed={seed}", "strategy.name=naive") for seed in (0, 1)}
    one, two, gone = Group("one", sound), Group("two", {**sound, 2: lost}), Group("gone", {0: lost})
    found = compare([one, two, gone])
    expected = np.mean([result.metrics["accuracy"] for result in sound.values()])
    assert found.means["accuracy"] == [pytest.approx(expected), pytest.approx(expected), None]
    assert found.of("accuracy", 1).difference == 0
    assert found.of("wall_seconds", 2) is None
    assert [group["diverged"] for group in json.loads(to_json(found))["groups"]] == [[], [2], [0]]
    text = printed(to_table(found))
    assert "(2 seeds)" in text
    assert "(3 seeds, 1 diverged)" in text
    assert "(1 seed, 1 diverged)" in text
    assert len(all_figures([one, two, gone])) == 4
    with pytest.raises(UserError, match="gone: all runs diverged"):
        lengths_of([gone], [], 1, Console(file=io.StringIO()))


def test_mlflow_says_so(tiny, tmp_path, store):
    with chdir(tmp_path):
        overrides = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=diverged")
        result = run_experiment(tiny(*WILD, *overrides, f"output_dir={tmp_path / 'run'}"), Console(quiet=True))
    run = open_client(store).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["diverged"] == result.verdict
    assert run.data.tags["mlflow.note.content"].startswith(f"**This run {result.verdict}.**")
    assert "matrix" in summary_of(result)


def summary_of(result):
    assert "diverged" in printed(summary_table([result]))
    return result.artifacts
