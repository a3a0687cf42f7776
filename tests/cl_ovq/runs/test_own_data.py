"""Data of a user's own goes through a whole run: every head, resuming, evaluating again, and the saved model."""

from __future__ import annotations

import io
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints.plugin import Checkpoints
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import run_experiment

QUIET = Console(file=io.StringIO())
F = 6


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Six classes far apart in three domains, as a CSV file."""
    random = np.random.default_rng(0)
    labels, domains = random.integers(0, 6, 480), random.integers(0, 3, 480)
    vectors = 6 * np.eye(F)[labels] + random.normal(size=(3, F))[domains] + random.normal(size=(480, F))
    found = pd.DataFrame(vectors, columns=list("abcdef"))
    found["label"], found["domain"] = labels, np.array(["one", "two", "three"])[domains]
    path = tmp_path_factory.mktemp("table") / "x.csv"
    found.to_csv(path, index=False)
    return path


def config(table, output, *overrides):
    fixed = (f"stream.data={table}", f"output_dir={output}", "tracking.enabled=false", "figures=false")
    return load_config("features", [*fixed, "strategy.batch_size=32", *overrides])


HEADS = {
    "memory": ("memory.capacity=60",),
    "perceptron": ("model.name=mlp", "model.head=linear", "strategy.epochs=4", "optimizer.learning_rate=1e-2"),
    "linear": ("model.name=pixels", "model.head=linear", "strategy.epochs=12", "optimizer.learning_rate=1e-1"),
    "random": ("model.name=random_features", "memory.capacity=60"),
    "slda": ("model.head=linear", "strategy.name=slda"),
    "ncm": ("model.head=linear", "strategy.name=ncm"),
}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_vectors(table, tmp_path, head):
    overrides = ("stream.scenario=domain_incremental", *HEADS[head])
    result = run_experiment(config(table, tmp_path / "run", *overrides), QUIET)
    assert len(result.matrix) == 4
    assert result.metrics["accuracy"] > 0.85
    assert result.provenance["data"]["domains"] == result.experiences == [["one"], ["three"], ["two"]]
    assert result.labels == ["one", "three", "two"]


def test_a_model_of_images_is_refused(table, tmp_path):
    for name in ("patch_transformer", "random_convolution"):
        with pytest.raises(UserError) as error:
            run_experiment(config(table, tmp_path / "run", f"model.name={name}", "model.head=linear"), QUIET)
        assert str(error.value) == (
            f"model.name: '{name}' reads images, but 'features' has vectors: known: mlp, pixels, random_features"
        )


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_a_run_is_evaluated_again_and_its_model_answers_alike(table, tmp_path, scenario):
    result = run_experiment(
        config(table, tmp_path / "run", f"stream.scenario={scenario}", "stream.experiences=3", "memory.capacity=60"),
        QUIET,
    )
    found = evaluate_finished(result.output_dir)
    np.testing.assert_allclose(found.values["accuracy"], result.matrix[-1])
    assert result.metrics["accuracy"] > 0.9


def test_other_data_is_evaluated_as_what_it_is(table, tmp_path):
    """By the names of its classes: their numbers are another data set's."""
    result = run_experiment(config(table, tmp_path / "run", "memory.capacity=60"), QUIET)
    rows = pd.read_csv(table)
    half, fewer = tmp_path / "half.csv", tmp_path / "fewer.csv"
    rows[::2].to_csv(half, index=False)
    rows[rows.label > 2].to_csv(fewer, index=False)
    assert evaluate_finished(result.output_dir).own
    found = evaluate_finished(result.output_dir, [f"stream.data={half}"])
    assert (found.own, found.metrics["accuracy"] > 0.9) == (False, True)
    with pytest.raises(UserError, match=r"^stream: class 0 is '3', but the model learned '0' under that number"):
        evaluate_finished(result.output_dir, [f"stream.data={fewer}", "stream.experiences=3"])


def test_resuming_changes_nothing_even_where_the_samples_are_in_memory(table, tmp_path):
    whole = run_experiment(config(table, tmp_path / "whole", "stream.experiences=3"), QUIET)
    own = Checkpoints.after_training_exp

    def killed(self, strategy, **kwargs):
        own(self, strategy, **kwargs)
        if strategy.clock.train_exp_counter == 2:
            raise KeyboardInterrupt

    with patch.object(Checkpoints, "after_training_exp", killed), pytest.raises(KeyboardInterrupt):
        run_experiment(config(table, tmp_path / "parts", "stream.experiences=3"), QUIET)
    assert not (tmp_path / "parts" / "results.json").exists()
    again = config(table, tmp_path / "parts", "stream.experiences=3", "stream.cache=false")
    parts = run_experiment(again, QUIET, resume=True)
    assert parts.matrix == whole.matrix
