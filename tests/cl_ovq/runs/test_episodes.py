"""Runs on episodes: few samples, and perhaps a single class in an experience."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.config.load import from_stored
from cl_ovq.in_context import build_learner
from cl_ovq.in_context.head import InContextHead
from cl_ovq.in_context.standardisation import standardise, statistics_of
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from streams import rows_of

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


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_gain_is_measured_against_a_learner_that_was_told_nothing(episode, scenario):
    overrides = ("strategy.name=in_context", *LEARNER, "stream.samples=5", f"stream.scenario={scenario}")
    more = ("stream.tasks=3", "stream.classes_per_task=3", "evaluation.stop_after=2", "checkpoint.enabled=true")
    result = episode(*overrides, *more)
    config = from_stored(result.config)
    stream, head = load_stream(config), result.model()
    head = getattr(head, "model", head).head.memory
    fresh = InContextHead(features=64, classes=9, learner=build_learner(config.learner, config.dictionary, 0), seed=0)
    shares = []
    for number, one in enumerate(stream.benchmark.streams["test"][:2]):
        rows = rows_of(one.dataset)
        x = standardise(stream.samples.gather(rows).flatten(1), head.mean, head.deviation, fresh.projection)
        with torch.no_grad():
            told, _ = fresh.learner(x[:, None], None)
        scores = told[:, 0] @ fresh.codes.T  # all codes are of one length
        scores[:, 6:] = -torch.inf  # not seen
        if scenario == "task_incremental":
            own = torch.full_like(scores, -torch.inf)
            own[:, 3 * number : 3 * number + 3] = 0
            scores = scores + own
        shares.append((scores.argmax(1) == stream.samples.targets[rows]).double().mean().item())
    assert result.metrics["empty_state_accuracy"] == pytest.approx(sum(shares) / 2)
    assert result.metrics["gain"] == pytest.approx(result.metrics["accuracy"] - sum(shares) / 2)
    # It is asked last, and nothing of the state is lost.
    x = stream.samples.gather(rows)
    with torch.no_grad(), head.emptied():
        empty = head(x.flatten(1))
    with torch.no_grad():
        assert not torch.equal(head(x.flatten(1)), empty)
    assert result.metrics["accuracy"] == pytest.approx(result.to_numpy()[-1].mean())


def test_only_a_learner_has_a_state_to_gain_by(episode):
    assert "gain" not in episode().metrics
