"""Runs on episodes: few samples, and perhaps a single class in an experience."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.in_context.standardisation import standardise, statistics_of
from cl_ovq.runs.run import run_experiment

EPISODE = """
stream: {name: episodes_digits, classes_per_task: 1, tasks: 4, samples: 1, questions: 5}
model: {name: pixels}
strategy: {name: ncm}
figures: false
checkpoint: {enabled: false}
tracking: {enabled: false}
"""
LEARNER = (
    *("learner.steps=1", "learner.episodes=1", "learner.width=16", "learner.heads=2", "learner.mixer=ovq"),
    *("dictionary.scope=sequence", "dictionary.capacity=8", "dictionary.chunk_size=4"),
)


@pytest.fixture
def episode(tmp_path, monkeypatch):
    """`episode(*overrides)`: the result of a run on a tiny episode."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "episode.yaml").write_text(EPISODE)

    def episode(*overrides):
        config = load_config(tmp_path / "episode.yaml", (*overrides, f"output_dir={tmp_path / 'run'}"))
        return run_experiment(config, Console(file=io.StringIO()), overwrite=True)

    return episode


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("ncm", ()),
        ("slda", ()),
        ("ridge", ()),
        ("in_context", LEARNER),
        ("replay", ("model.name=mlp", "strategy.buffer_size=3")),
    ],
)
def test_one_sample_of_one_class_at_a_time(episode, strategy, more):
    result = episode(f"strategy.name={strategy}", *more)
    assert result.diverged is None
    matrix = torch.from_numpy(result.to_numpy())
    assert matrix.shape == (5, 4)
    if strategy != "replay":
        assert matrix[1, 0] == 1  # the only class that there is
        assert not matrix[1:].triu(1).any()  # of classes to come nothing is known
    assert result.provenance["data"]["sizes"]["train"] == 4


def test_one_sample_tells_apart_what_differs_from_it():
    """Nothing is known of how much features vary: they count alike, by their difference from it."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    mean, deviation = statistics_of(x[:1])
    expected = torch.nn.functional.normalize(x[1:] - x[0], dim=1)
    torch.testing.assert_close(standardise(x[1:], mean, deviation), expected)
