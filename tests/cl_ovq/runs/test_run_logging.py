"""The name of an MLflow experiment is known before its stream is built, and is that of the stream that is built."""

import pytest

from cl_ovq.config.load import load_stream_config
from cl_ovq.runs.run_logging import experiment_of, scenario_of
from cl_ovq.runs.setup import load_stream

SMALL = ("train=8", "validation=4", "test=4")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *(("split_digits", [f"scenario={name}_incremental"]) for name in ("class", "domain", "task")),
        ("permuted_digits", []),
        ("rotated_digits", ["scenario=task_incremental"]),
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
