"""What a strategy's own parts must keep is theirs to say, and one that does not say it is told so before it trains."""

import io

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from resume_helpers import FAST, Killed, final, killed_at
from rich.console import Console

from cl_ovq.errors import UserError
from cl_ovq.mixers import dictionaries
from cl_ovq.runs.run import run_experiment
from cl_ovq.strategies import STRATEGIES


class Silent(SupervisedPlugin):
    """Learns ever less: its state decides what a run does."""

    def __init__(self):
        super().__init__()
        self.factor = torch.ones(())

    def before_update(self, strategy, **kwargs):
        self.factor = self.factor * 0.9
        for parameter in strategy.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.factor


class Known(Silent):
    STATE = ("factor",)


@pytest.fixture
def lent():
    """`lent(plugin)`: a strategy `waning` with that plugin, for as long as the test runs."""
    kept = []

    def lent(plugin):
        entry = STRATEGIES.lent("waning", "learns ever less", build=lambda options, context: context.naive(plugin()))
        entry.__enter__()
        kept.append(entry)

    yield lent
    for entry in kept:
        entry.__exit__(None, None, None)


def run_it(config, **options):
    return run_experiment(config, Console(file=io.StringIO()), **options)


def test_one_that_says_nothing_is_refused_before_anything_is_written(tiny, tmp_path, lent):
    lent(Silent)
    config = tiny("strategy.name=waning", *FAST, f"output_dir={tmp_path / 'out'}", "tracking.enabled=true")
    with pytest.raises(UserError, match=r"^checkpoint: 'Silent' of .* does not say what to keep of it: give .* STATE"):
        run_it(config)
    assert not (tmp_path / "out").exists()


def test_it_may_run_without_checkpoints(tiny, tmp_path, lent):
    lent(Silent)
    config = tiny("strategy.name=waning", *FAST, f"output_dir={tmp_path}", "checkpoint.enabled=false")
    assert run_it(config).metrics["accuracy"] is not None


def test_one_that_says_it_goes_on_as_if_nothing_had_been(tiny, tmp_path, lent):
    lent(Known)
    overrides = ("strategy.name=waning", *FAST)
    whole = run_it(tiny(*overrides, f"output_dir={tmp_path / 'whole'}"))
    config = tiny(*overrides, f"output_dir={tmp_path / 'killed'}", "checkpoint.every_steps=1")
    with killed_at(whole.provenance["train_steps"] - 1), pytest.raises(Killed):
        run_it(config, resume=True)
    assert run_it(config, resume=True).matrix == whole.matrix
    assert final(tmp_path / "killed") == final(tmp_path / "whole")


def test_state_dict_of_a_model_holds_the_task_of_its_dictionaries(session):
    began, other = session("dictionary.scope=task"), session("dictionary.scope=task")
    for dictionary in dictionaries(began.model).values():
        dictionary.begin_task(3)
    other.model.load_state_dict(began.model.state_dict())
    assert {dictionary.task for dictionary in dictionaries(other.model).values()} == {3}
    older = {name: content for name, content in began.model.state_dict().items() if "_extra_state" not in name}
    other.model.load_state_dict(older)  # as it was saved before the task was part of it
    assert {dictionary.task for dictionary in dictionaries(other.model).values()} == {0}
