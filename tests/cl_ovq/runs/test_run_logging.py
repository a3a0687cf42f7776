"""What MLflow is told: the name of the experiment before the stream is built, and what is known at the end."""

from pathlib import Path

import pytest

from cl_ovq.config.load import load_stream_config
from cl_ovq.runs.run_logging import experiment_of, log_result, scenario_of
from cl_ovq.runs.setup import load_stream
from cl_ovq.tracking import NullTracker

SMALL = ("train=8", "validation=4", "test=4")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *(("split_digits", [f"scenario={name}_incremental"]) for name in ("class", "domain", "task")),
        ("permuted_digits", []),
        ("rotated_digits", ["scenario=task_incremental"]),
        ("episodes_digits", []),
        ("recall", SMALL),
        ("regression", SMALL),
        ("text", SMALL),
    ],
)
def test_the_scenario_is_that_of_the_stream(name, overrides):
    config = load_stream_config(name, overrides)
    stream = load_stream(config)
    assert scenario_of(config) == stream.scenario
    assert experiment_of(config) == f"{name} {stream.scenario}"


class Kept(NullTracker):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.logged = {}

    def log(self, values, step):
        self.logged |= {(name, step): value for name, value in values.items()}


def logged(result):
    tracker = Kept()
    log_result(result, Path(result.output_dir), tracker)
    return tracker.logged


def test_metrics_of_the_whole_run_are_logged_at_its_end(run):
    result = run("evaluation.every_steps=5")
    found = logged(result)
    for name in ("average_anytime_accuracy", "worst_case_accuracy"):
        assert found[name, 2] == result.metrics[name]
    assert found["accuracy/by_age", 1] == result.matrix[2][0]


def test_what_was_learned_at_once_has_no_age(run):
    result = run("strategy.name=joint")
    assert result.by_age == [None, None]
    assert not any(name.endswith("by_age") for name, _ in logged(result))
