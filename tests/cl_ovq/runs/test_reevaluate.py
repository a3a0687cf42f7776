"""Evaluating a finished run: what it measured is found again, and nothing of it changes."""

import json

import numpy as np
import pytest
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream


@pytest.mark.parametrize("settings", [(), ("model.head=memory",), ("strategy.name=slda", "model.name=pixels")])
def test_its_own_stream_gives_what_the_run_measured(run, settings):
    result = run(*settings)
    found = evaluate_finished(result.output_dir)
    assert (found.own, found.learned) == (True, 2)
    np.testing.assert_allclose(found.values["accuracy"], result.matrix[-1])
    np.testing.assert_allclose(found.values["task_masked_accuracy"], result.matrices["task_masked_accuracy"][-1])
    for name in ("accuracy", "forgetting", "backward_transfer"):
        assert found.metrics[name] == pytest.approx(result.metrics[name])
    assert all(value is not None and value > 0.5 for value in found.values["linear_probe"])


def test_a_run_that_ended_early_is_judged_on_what_it_learned(run):
    result = run("evaluation.stop_after=1")
    found = evaluate_finished(result.output_dir)
    assert (found.own, found.learned) == (True, 1)
    assert {name: len(values) for name, values in found.values.items() if len(values) != 1} == {}
    assert found.metrics["accuracy"] == result.metrics["accuracy"] == result.matrix[-1][0]


def test_another_stream_is_judged_without_training(run):
    result = run()
    found = evaluate_finished(result.output_dir, ["stream.experiences=5", "evaluation.split=validation"])
    assert not found.own
    assert len(found.values["accuracy"]) == len(found.values["linear_probe"]) == 5
    assert "forgetting" not in found.metrics
    gain = np.mean(found.values["linear_probe"]) - np.mean(found.values["untrained_probe"])
    assert found.metrics["forward_transfer_linear_probe"] == pytest.approx(gain)
    again = evaluate_finished(result.output_dir)  # the checkpoint is as it was
    np.testing.assert_allclose(again.values["accuracy"], result.matrix[-1])


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.schedule=warmup", "optimizer.warmup_steps=15"),
        ("training.accumulation=12",),
        ("evaluation.every_steps=30",),
        ("model.head=memory", "memory.calibrate=true"),
        ("evaluation.stop_after=2",),
    ],
)
def test_what_only_training_needs_is_not_asked_of_another_stream(tiny, settings):
    """Shorter experiences, fewer of them, or no validation data: a trained model is judged on these as well."""
    assert len(load_stream(tiny(*settings)).classes_per_experience) == 2
    for count, other in (5, ("stream.experiences=5",)), (1, ("stream.experiences=1", "stream.validation_fraction=0")):
        assert len(load_stream(tiny(*settings, *other), learned=False).classes_per_experience) == count


QUIET = Console(quiet=True)

RECALL = """
stream: {name: recall, experiences: 2, length: 16, pairs: 2, keys: 8, values: 4, train: 30, validation: 6, test: 6}
model: {name: sequence_model, width: 8, depth: 1, heads: 1}
dictionary: {scope: stream, capacity: 8, chunk_size: 4}
strategy: {batch_size: 10}
tracking: {enabled: false}
"""


def test_a_model_of_sequences(tmp_path):
    (tmp_path / "recall.yaml").write_text(RECALL)
    config = load_config(tmp_path / "recall.yaml", [f"output_dir={tmp_path / 'run'}"])
    result = run_experiment(config, Console(quiet=True))
    found = evaluate_finished(result.output_dir)
    assert (found.own, found.quantity) == (True, "accuracy")
    assert found.values["accuracy"] == result.matrix[-1]
    assert set(found.values) == {"accuracy", "loss"}
    for name in ("accuracy", "forgetting", "backward_transfer"):
        assert found.metrics[name] == pytest.approx(result.metrics[name])
    assert len(found.to_table().rows) == 2
    other = evaluate_finished(result.output_dir, ["stream.length=32"])
    assert not other.own
    assert "forgetting" not in other.metrics
    assert (other.lengths, other.capacities) == ([], [])
    with pytest.raises(UserError, match=r"'recall' has \d+ tokens, but the model was built for \d+ tokens"):
        evaluate_finished(result.output_dir, ["stream.keys=6"])


def test_a_finished_run_at_other_lengths_and_capacities_gives_what_it_would_have_measured(tmp_path):
    (tmp_path / "recall.yaml").write_text(RECALL.replace("scope: stream", "scope: sequence"))
    asked = ["evaluation.lengths=[16,64]", "evaluation.capacities=[2,8]", "evaluation.length_tokens=300"]
    whole, plain = (
        run_experiment(load_config(tmp_path / "recall.yaml", [f"output_dir={tmp_path / name}", *more]), QUIET)
        for name, more in (("whole", asked), ("plain", []))
    )
    assert plain.lengths == plain.capacities == []
    found = evaluate_finished(plain.output_dir, asked)
    assert [record["tokens"] for record in found.lengths] == [16, 64]
    assert (found.lengths, found.capacities) == (whole.lengths, whole.capacities)
    assert json.loads(found.to_json())["capacities"] == whole.capacities
    with pytest.raises(UserError, match=r"evaluation\.lengths: 6: "):
        evaluate_finished(plain.output_dir, ["evaluation.lengths=[6]"])


def test_capacities_of_a_dictionary_that_was_written_are_refused(tmp_path):
    (tmp_path / "recall.yaml").write_text(RECALL)
    run_experiment(load_config(tmp_path / "recall.yaml", [f"output_dir={tmp_path / 'run'}"]), QUIET)
    with pytest.raises(UserError, match=r"with dictionary\.scope=stream the dictionary's capacity is fixed"):
        evaluate_finished(str(tmp_path / "run"), ["evaluation.capacities=[4]"])


def test_mistakes_are_said(run, tmp_path):
    directory = run().output_dir
    with pytest.raises(UserError, match="contains no checkpoint"):
        evaluate_finished(str(tmp_path))
    with pytest.raises(UserError, match=r"'model\.width=3': a finished run cannot be changed"):
        evaluate_finished(directory, ["model.width=3"])
    with pytest.raises(UserError, match=r"'evaluation\.every_steps=3': a finished run cannot be changed"):
        evaluate_finished(directory, ["evaluation.every_steps=3"])
    with pytest.raises(UserError, match=r"evaluation\.log_length_scaling: has no effect without evaluation\.lengths"):
        evaluate_finished(directory, ["evaluation.log_length_scaling=true"])
    with pytest.raises(UserError, match=r"evaluation\.lengths: 'split_digits' has no sequences of other lengths"):
        evaluate_finished(directory, ["evaluation.lengths=[16]"])
    with pytest.raises(UserError, match="unknown stream 'split_digit'"):
        evaluate_finished(directory, ["stream.name=split_digit"])
    with pytest.raises(UserError, match=r"has samples of shape \[1, 28, 28\], but the model was built for \[1, 8, 8\]"):
        evaluate_finished(directory, ["stream.name=split_fashion_mnist"])
    (tmp_path / "checkpoint.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a checkpoint"):
        evaluate_finished(str(tmp_path / "checkpoint.bin"))
