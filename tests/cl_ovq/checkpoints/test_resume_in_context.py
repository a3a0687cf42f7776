"""What is learned in the state goes on, bit for bit, where a run was killed: classes, and vectors."""

import io

import pytest
import torch
from resume_helpers import Killed, assert_same, final, killed_at
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints import NAME, read_checkpoint, write_checkpoint
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


@pytest.fixture
def config(tmp_path, monkeypatch):
    """`config(name, folder)`: of one of `RUNS`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def made(name, folder):
        experiment, *overrides = RUNS[name]
        return load_config(experiment, (*PLAIN, *overrides, f"output_dir={tmp_path / folder}"))

    return made


@pytest.mark.parametrize("name", RUNS)
def test_killed_twice(tmp_path, config, name):
    console = Console(file=io.StringIO())
    whole = run_experiment(config(name, "whole"), console)
    for step in (1, 4):
        with killed_at(step), pytest.raises(Killed):
            run_experiment(config(name, "killed"), console, resume=True)
    result = run_experiment(config(name, "killed"), console, resume=True)
    assert_same(result, whole, tmp_path / "killed", final(tmp_path / "whole"))


def test_states_that_are_wrong_are_told_in_one_line(tmp_path, config):
    console, path = Console(file=io.StringIO()), tmp_path / "killed" / NAME
    with killed_at(4), pytest.raises(Killed):
        run_experiment(config("vectors", "killed"), console)
    right = read_checkpoint(path)
    states = [key for key in right["state"]["model"] if ".state_" in key]
    (means,) = [key for key in states if key.endswith(".state_1")]
    for change, line in (
        (lambda model: model.pop(states[-1]), r"the state of head\.memory: \d+ is missing"),
        (lambda model: model.update({f"{states[0]}9": model[means]}), r"the state of head\.memory: 09 is not known"),
        (
            lambda model: model.update({means: model[means][..., 1:]}),
            r"the state of head\.memory has torch\.float32 of",
        ),
        (
            lambda model: model.update({means: model[means].double()}),
            r"the state of head\.memory has torch\.float64 of",
        ),
        (lambda model: model.update({means: torch.zeros(())}), r"the state of head\.memory has torch\.float32 of \[\]"),
    ):
        wrong = {**right, "state": {**right["state"], "model": dict(right["state"]["model"])}}
        change(wrong["state"]["model"])
        write_checkpoint(path, wrong)
        with pytest.raises(UserError, match=f"does not fit this run: {line}") as refusal:
            run_experiment(config("vectors", "killed"), console, resume=True)
        assert "\n" not in str(refusal.value)
