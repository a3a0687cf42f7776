"""What a strategy's own parts must keep is theirs to say, and one that does not say it is told so before it trains."""

import io

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from resume_helpers import FAST, Killed, final, killed_at
from rich.console import Console
from torch import nn

from cl_ovq.avalanche import Plugin
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


class Whole(Plugin):
    """The same, and its attributes are its state without saying so."""

    def __init__(self):
        super().__init__()
        self.factor = torch.ones(())

    before_update = Silent.before_update


class Late(Whole):
    def before_update(self, strategy, **kwargs):
        self.steps = 1


class Lost(Whole):
    def before_update(self, strategy, **kwargs):
        del self.factor


class Annealed(Plugin):
    """Changes what it was given; one that is made anew has it as it was."""

    def __init__(self):
        super().__init__({"factor": 1.0})

    def before_update(self, strategy, **kwargs):
        self.options["factor"] *= 0.9


class Alias(Plugin):
    """Forgot to copy weights: what a checkpoint brings back would rest where these are trained."""

    def __init__(self):
        super().__init__()
        self.past = {}

    def before_update(self, strategy, **kwargs):
        self.past = {name: weight.data for name, weight in strategy.model.named_parameters()}


class Varied(SupervisedPlugin):
    """Keeps every kind of thing that can be kept; all of it decides what a run does."""

    STATE = ("weights", "seen", "rates", "names", "array", "labels", "nested", "projection", "part")

    def __init__(self):
        super().__init__()
        self.weights = None  # a list of tensors, once there is one
        self.seen = torch.tensor(10**6)  # more than there are samples
        self.rates = [1.0]
        self.names = {"steps": 0}
        self.array = np.ones(2)
        self.labels = set()
        self.nested = ((1, "a"), {3: [None, True]})
        self.projection = nn.Linear(3, 2)
        self.part = Known()

    def before_update(self, strategy, **kwargs):
        steps = self.names["steps"]
        self.names["steps"] += 1
        self.names[f"rate of {steps}"] = self.rates[-1]
        self.rates.append(self.rates[-1] * 0.9)
        self.seen += steps
        self.array *= 1.01
        self.labels.add(steps)
        self.weights = [weight.detach().clone() for weight in strategy.model.parameters()]
        with torch.no_grad():
            self.projection.weight *= 0.99
        factor = sum(self.rates) + float(self.seen) / 1e6 + self.array.sum() + len(self.labels) + len(self.names)
        factor = (factor + float(self.weights[0].sum()) + float(self.projection.weight.detach().sum())) / 30
        self.part.before_update(strategy)
        for parameter in strategy.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= factor


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
    with pytest.raises(
        UserError, match=r"^checkpoint: 'Silent' \(.*\.py\) does not declare its state: inherit .* STATE"
    ):
        run_it(config)
    assert not (tmp_path / "out").exists()


def test_it_may_run_without_checkpoints(tiny, tmp_path, lent):
    lent(Silent)
    config = tiny("strategy.name=waning", *FAST, f"output_dir={tmp_path}", "checkpoint.enabled=false")
    assert run_it(config).metrics["accuracy"] is not None


@pytest.mark.parametrize("plugin", [Known, Whole, Varied])
def test_one_that_says_it_goes_on_as_if_nothing_had_been(tiny, tmp_path, lent, plugin):
    lent(plugin)
    overrides = ("strategy.name=waning", *FAST)
    whole = run_it(tiny(*overrides, f"output_dir={tmp_path / 'whole'}"))
    config = tiny(*overrides, f"output_dir={tmp_path / 'killed'}", "checkpoint.every_steps=1")
    with killed_at(whole.provenance["train_steps"] - 1), pytest.raises(Killed):
        run_it(config, resume=True)
    assert run_it(config, resume=True).matrix == whole.matrix
    assert final(tmp_path / "killed") == final(tmp_path / "whole")


@pytest.mark.parametrize(
    ("plugin", "line"),
    [
        (Late, "'Late' has a new attribute 'steps': set it in __init__"),
        (Lost, "'Lost' has lost its attribute 'factor': set it to None"),
        (Annealed, "'Annealed' has changed its options, which must stay constant: copy"),
        (Alias, "'Alias' has an attribute 'past', which holds a tensor of the model itself"),
    ],
)
def test_what_one_made_anew_would_not_have(tiny, tmp_path, lent, plugin, line):
    """Its first checkpoint says so: a run that went on from it would be another."""
    lent(plugin)
    with pytest.raises(UserError, match=f"^checkpoint: {line}"):
        run_it(tiny("strategy.name=waning", *FAST, f"output_dir={tmp_path}", "checkpoint.every_steps=1"))


def holding(name, value):
    class Odd(SupervisedPlugin):
        STATE = (name,)

    setattr(Odd, name, value)
    return Odd


class Unready(SupervisedPlugin):
    STATE = ("later",)


class Text(SupervisedPlugin):
    STATE = "count"
    count = 0


@pytest.mark.parametrize(
    ("plugin", "line"),
    [
        (
            holding("rng", np.random.default_rng(0)),
            "STATE of .*Odd' names 'rng', which holds a Generator",
        ),
        (
            holding("rng", [torch.Generator()]),
            "STATE of .* names 'rng', which holds a Generator, which cannot be saved",
        ),
        (holding("x", torch.zeros(1, dtype=torch.complex64)), "STATE of .* holds a tensor of torch.complex64"),
        (holding("x", np.array(["a"])), "STATE of .* holds an array of <U1"),
        (holding("x", {"set": 1}), "STATE of .* holds a mapping with nothing but 'set'"),
        (holding("x", [Known()]), "STATE of .* holds a Known, which cannot be saved: supported are numbers, text"),
        (Unready, "STATE of 'Unready' names 'later', but it has no such attribute: set it in __init__"),
        (Text, r"STATE of 'Text' is a string: write STATE = \('count',\)"),
    ],
)
def test_what_cannot_be_kept_is_said_before_anything_is_written(tiny, tmp_path, lent, plugin, line):
    lent(plugin)
    with pytest.raises(UserError, match=f"^checkpoint: {line}"):
        run_it(tiny("strategy.name=waning", *FAST, f"output_dir={tmp_path / 'out'}", "tracking.enabled=true"))
    assert not (tmp_path / "out").exists()


def test_state_dict_of_a_model_holds_the_task_of_its_dictionaries(session):
    began, other = session("dictionary.scope=task"), session("dictionary.scope=task")
    for dictionary in dictionaries(began.model).values():
        dictionary.begin_task(3)
    other.model.load_state_dict(began.model.state_dict())
    assert {dictionary.task for dictionary in dictionaries(other.model).values()} == {3}
    older = {name: content for name, content in began.model.state_dict().items() if "_extra_state" not in name}
    other.model.load_state_dict(older)  # as it was saved before the task was part of it
    assert {dictionary.task for dictionary in dictionaries(other.model).values()} == {0}
