"""A run with schedule, augmentation, few bits and accumulation goes on, bit for bit, where it was killed."""

import io
import json

import pytest
import torch
from forked import ForkedCommand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick_settings import quick
from resume_helpers import PARTS, Killed, assert_same, final, killed_at, killed_by_sigkill
from rich.console import Console

from cl_ovq.runs.run import run_experiment

ALL = (
    "optimizer.name=sgd",
    "optimizer.momentum=0.9",
    "optimizer.learning_rate=0.1",
    "optimizer.weight_decay=1e-3",
    "optimizer.decay_norm_and_bias=false",
    "optimizer.schedule=cosine",
    "optimizer.warmup_steps=2",
    "training.augmentation=[crop, flip, color, randaugment]",
    "training.padding=1",
    "training.accumulation=2",
)
FP16 = (*ALL, "training.precision=fp16")
BF16 = (*ALL, "training.precision=bf16")
RUNS = {
    "derpp": quick("derpp", *FP16, "model.name=small"),
    "gem": quick("gem", *FP16, "model.name=small"),
    "si": quick("si", *FP16, "model.name=small"),
    "lwf": quick("lwf", *BF16, "model.name=small"),
    "early_stopping": quick("early_stopping", *BF16, "model.name=small", "strategy.patience=1"),
    "ovq": quick("replay", *BF16, "model.dropout=0.1"),
    "memory": quick("naive", *FP16, "model.name=small", "model.head=memory", "memory.capacity=60"),
}
SLOW = ("si", "lwf", "early_stopping")
pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize(
    "overrides", [pytest.param(RUNS[name], marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in RUNS]
)
@settings(max_examples=1, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_killed_anywhere(tiny, tmp_path_factory, undisturbed, overrides, data):
    whole, expected = undisturbed(*overrides)
    kills = data.draw(st.lists(st.integers(2, whole.provenance["train_steps"]), min_size=2, max_size=2, unique=True))
    every = data.draw(st.sampled_from([1, 3]))
    folder = tmp_path_factory.mktemp("killed")
    config = tiny(*overrides, f"output_dir={folder}", f"checkpoint.every_steps={every}")
    for kill in sorted(kills):
        with killed_at(kill), pytest.raises(Killed):
            run_experiment(config, Console(file=io.StringIO()), resume=True)
    result = run_experiment(config, Console(file=io.StringIO()), resume=True)
    assert_same(result, whole, folder, expected)


def test_a_checkpoint_holds_what_they_remember(undisturbed):
    """Rate, scale and random numbers are in it, and differ from those of a run that begins."""
    _, state = undisturbed(*RUNS["derpp"])
    keys = {key.rpartition("/")[2] for key in state}
    assert {"generator", "scale", "whole", "step", "steps", "lr"} <= keys
    (step,) = (value for key, value in state.items() if key.endswith("object/step"))
    (steps,) = (value for key, value in state.items() if key.endswith("object/steps"))
    assert step == steps != "0"


@pytest.mark.slow
def test_a_compiled_run_goes_on_with_the_same_bits(tiny, tmp_path, undisturbed):
    overrides = (*RUNS["derpp"], "training.compile=true", "evaluation.batch_size=100")
    whole, expected = undisturbed(*overrides)
    config = tiny(*overrides, f"output_dir={tmp_path}", "checkpoint.every_steps=1")
    for kill in (3, 11):
        torch._dynamo.reset()  # as in a new process
        with killed_at(kill), pytest.raises(Killed):
            run_experiment(config, Console(file=io.StringIO()), resume=True)
    torch._dynamo.reset()
    result = run_experiment(config, Console(file=io.StringIO()), resume=True)
    assert result.matrices == whole.matrices
    assert final(tmp_path) == expected


def test_a_process_killed_by_sigkill_goes_on(tiny_path, tmp_path, undisturbed):
    overrides = quick("derpp", *FP16, "model.name=mlp")
    whole, expected = undisturbed(*overrides)
    folder, arguments = killed_by_sigkill(tmp_path, tiny_path, *overrides, "checkpoint.every_steps=1", "--json")
    done = ForkedCommand("run", *arguments, "--resume").wait()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for part in PARTS:
        assert result[part] == json.loads(whole.to_json())[part]
    assert final(folder) == expected
