"""Growth that follows novelty, through whole runs: a staircase on a split stream, a flat line on a repeated one."""

import io

from rich.console import Console

from cl_ovq.config import load_config
from cl_ovq.runs.run import run_experiment


def sizes(tmp_path, *overrides):
    """Slots over training, as lists by experience, and samples per epoch of each."""
    settings = ("tracking.enabled=false", f"output_dir={tmp_path / str(len(overrides))}", *overrides)
    result = run_experiment(load_config("novelty_split_digits", settings), Console(file=io.StringIO()))
    history = result.dictionary["history"]
    experiences = sorted({record["experience"] for record in history} - {0})
    return [[r["size"] for r in history if r["experience"] == experience] for experience in experiences], result


def test_a_split_stream_gives_a_staircase(tmp_path):
    steps, result = sizes(tmp_path)
    assert len(steps) == 5
    for experience in steps:
        quarter = len(experience) // 4  # four epochs
        rise = experience[quarter] - experience[0]
        rest = experience[-1] - experience[quarter]
        assert rise >= 5, "a new experience brings new slots"
        assert rest <= 0.1 * rise, "the same data again bring none"
    assert steps[-1][-1] < 0.6 * 256  # it is novelty that ends growth, not the capacity
    assert len(result.dictionary["plateaus"]) >= 4
    assert "dictionary_growth.png" in result.artifacts.values()


def test_a_repeated_stream_gives_a_flat_line(tmp_path):
    (repeated,), result = sizes(tmp_path, "stream.experiences=1")
    quarter = len(repeated) // 4
    assert repeated[quarter] > 50
    assert repeated[-1] - repeated[quarter] <= 0.05 * repeated[quarter]
    (plateau,) = result.dictionary["plateaus"][-1:]
    assert plateau["end_tokens"] is None
