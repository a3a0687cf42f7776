"""A configuration changed in Python is checked as one that is read, with the same line, before anything runs."""

import io

import numpy as np
import pytest
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.seeds import run_seeds
from streams import SplitOptions


def line_of(make, *arguments):
    with pytest.raises(UserError) as error:
        make(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(config, key, value):
    """Set what the command line calls `key`."""
    *sections, name = key.split(".")
    section = getattr(config, sections[0]) if sections else config
    setattr(section.options if sections == ["stream"] else section, name, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strategy.epochs", -1),
        ("strategy.epochs", "two"),
        ("strategy.epoch", 5),  # a misspelt attribute
        ("strategy.name", "reply"),
        ("epochs", 5),  # of another section
        ("model.dropout", 1.5),
        ("model.pattern", "ovq"),
        ("optimizer.learning_rate", 0),
        ("dictionary.scope", "tasks"),
        ("evaluation.lengths", [64, 0]),
        ("seed", -1),
        ("seed", 1.5),
        ("stream.experiences", 0),
        ("stream.experience", 2),
        ("stream.data_dir", "my/images"),
        ("stream.repeats", 2),
    ],
)
def test_the_same_mistake_gives_the_same_line(tiny, tmp_path, key, value):
    shown = "null" if value is None else value
    expected = line_of(lambda: run_experiment(tiny(f"{key}={shown}"), Console(quiet=True)))
    for start in (run_experiment, run_seeds):
        config = tiny(f"output_dir={tmp_path / 'run'}")
        change(config, key, value)
        assert line_of(start, config, Console(quiet=True)) == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "name", "value", "line"),
    [
        ("stream", "experiences", 2, "stream.experiences: options of a stream are attributes of stream.options"),
        ("stream", "name", "split_digit", "stream.name: unknown stream 'split_digit': did you mean 'split_digits'?"),
        ("optimizer", "learning_rate", np.float64("nan"), "optimizer.learning_rate: "),
        ("optimizer", "learning_rate", float("nan"), "optimizer.learning_rate: nan is not a finite number"),
        ("strategy", "epochs", np.int64(2), "strategy.epochs: "),
        ("", "strategy", {"epochs": 2}, "strategy: '{'epochs': 2}' is not a StrategyConfig"),
        ("strategy", "name", "der", "strategy: it lacks the options of the configured parts"),
        ("model", "head", "memory", "memory: it lacks the options of the configured parts"),
        ("model", "mixer", "softmax", "model: it lacks the options of the configured parts"),
        ("", "seeds", 3, "seeds: run_experiment makes only one run, not 3"),
    ],
)
def test_mistakes_that_only_python_can_make(tiny, tmp_path, section, name, value, line):
    config = tiny(f"output_dir={tmp_path / 'run'}")
    setattr(getattr(config, section) if section else config, name, value)
    assert line_of(run_experiment, config, Console(quiet=True)).startswith(line)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_not_read_for_a_misspelt_configuration(run, tiny):
    folder = run().output_dir
    config = tiny(f"output_dir={folder}")
    assert run_experiment(config, Console(quiet=True), resume=True).metrics == run().metrics
    config.strategy.epoch = 7
    line = line_of(lambda: run_experiment(config, Console(quiet=True), resume=True))
    assert line.startswith("unknown key 'strategy.epoch': did you mean 'strategy.epochs'?")


def test_options_of_another_stream_that_say_the_same_are_taken(tiny, tmp_path):
    config = tiny(f"output_dir={tmp_path / 'run'}", "model.name=pixels", "model.head=memory", "strategy.name=naive")
    config.stream.options = SplitOptions(experiences=2)
    result = run_experiment(config, Console(file=io.StringIO()))
    assert len(result.matrix) == 3
