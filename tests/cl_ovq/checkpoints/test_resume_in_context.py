"""What is learned in the state goes on, bit for bit, where a run was killed: classes, and vectors."""

import io

import pytest
from resume_helpers import Killed, assert_same, final, killed_at
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.runs.run import run_experiment

PLAIN = ("tracking.enabled=false", "figures=false", "checkpoint.every_steps=1")
RUNS = {
    "classes": ("in_context_digits", "evaluation.stop_after=2", "strategy.batch_size=100"),
    "vectors": (
        *("in_context_sine", "stream.tasks=3", "stream.samples=7", "stream.questions=4", "stream.dimensions=12"),
        *("learner.features=12", "learner.code=12", "learner.width=16", "learner.steps=1", "learner.episodes=1"),
        *("dictionary.capacity=6", "dictionary.chunk_size=4", "strategy.batch_size=4"),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_twice(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment, *overrides = RUNS[name]

    def config(folder):
        return load_config(experiment, (*PLAIN, *overrides, f"output_dir={tmp_path / folder}"))

    console = Console(file=io.StringIO())
    whole = run_experiment(config("whole"), console)
    for step in (1, 4):
        with killed_at(step), pytest.raises(Killed):
            run_experiment(config("killed"), console, resume=True)
    result = run_experiment(config("killed"), console, resume=True)
    assert_same(result, whole, tmp_path / "killed", final(tmp_path / "whole"))
