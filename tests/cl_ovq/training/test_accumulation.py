"""A step over several batches is the step of one large batch."""

import itertools
import math

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from quick_settings import ANYWHERE, fitting

from cl_ovq.errors import UserError
from cl_ovq.mixers import dictionaries
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.setup import load_stream
from cl_ovq.strategies import STRATEGIES

SGD = ("optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.learning_rate=0.05")
LARGE = ("strategy.batch_size=120",)
PARTS = ("strategy.batch_size=40", "training.accumulation=3")
# Those whose steps do not depend on how many samples are drawn at a time, or on batches of a fixed size.
SAME = ("naive", "joint", "cumulative", "l2", "ewc", "online_ewc", "si", "mas", "lwf", "gem", "early_stopping")


class Steps(SupervisedPlugin):
    """Notes sizes of batches, and how many were seen when a step was made."""

    def __init__(self):
        super().__init__()
        self.sizes, self.steps = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.sizes.append([])
        self.steps.append([])

    def before_training_iteration(self, strategy, **kwargs):
        self.sizes[-1].append(len(strategy.mb_y))

    def before_update(self, strategy, **kwargs):
        self.steps[-1].append(len(self.sizes[-1]))


def weights_of(trained):
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


@pytest.mark.parametrize("name", SAME)
def test_weights_are_those_of_large_batches(session, name):
    found, steps = [], Steps()
    few = ("strategy.importance_samples=20", "strategy.epochs=2", "strategy.strength=2", "model.name=mlp")
    for batches in (LARGE, PARTS):
        trained = session(*fitting(name, (*few, *batches)), *SGD)
        trained.learn(*([steps] if batches is PARTS else []))
        found.append(weights_of(trained))
    large, parts = found
    for key, expected in large.items():
        torch.testing.assert_close(parts[key], expected, rtol=1e-4, atol=1e-5)
    assert any(size < 40 for sizes in steps.sizes for size in sizes)  # the last batch of an epoch
    # Of 33 batches, as joint training has, each step has three.
    assert name == "joint" or any(
        after - before < 3 for ends in steps.steps for before, after in itertools.pairwise(ends)
    )


@pytest.mark.parametrize("scope", ["stream", "task"])
def test_dictionaries_are_written_as_by_large_batches(session, scope):
    found = []
    for batches in (LARGE, PARTS):
        trained = session("strategy.name=naive", f"dictionary.scope={scope}", *batches, *SGD)
        trained.learn()
        steps = sum(math.ceil(len(experience.dataset) / 120) for experience in trained.train)
        assert {int(one.writes) for one in dictionaries(trained.model).values()} == {steps}
        found.append(weights_of(trained))
    large, parts = found
    for key, expected in large.items():
        torch.testing.assert_close(parts[key], expected, rtol=1e-3, atol=1e-4)


def test_targets_of_sequences_count_alike_wherever_they_are(session):
    """Batches with different numbers of targets: their mean losses do not count alike."""
    recall = ("stream.name=recall", "stream.train=90", "stream.length=24", "stream.pairs=4", "stream.keys=16")
    overrides = ("strategy.name=naive", *recall, "model.name=sequence_model", "model.mixer=softmax")
    found = []
    for batches in (("strategy.batch_size=36",), ("strategy.batch_size=12", "training.accumulation=3")):
        trained = session(*overrides, *batches, *SGD)
        targets = trained.stream.samples.targets
        lost = torch.rand(targets.shape, generator=torch.Generator().manual_seed(0)) < torch.rand(len(targets), 1)
        targets[lost] = -100
        trained.learn()
        found.append(weights_of(trained))
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ANYWHERE if not STRATEGIES[name].is_head])
def test_every_strategy_makes_a_step_of_several_batches(session, name):
    trained, steps = session(*fitting(name, ("model.name=mlp", *PARTS))), Steps()
    trained.learn(steps)
    for sizes, ends in zip(steps.sizes, steps.steps, strict=True):
        assert ends == [*range(3, len(sizes), 3), len(sizes)]
    assert all(weight.isfinite().all() for weight in trained.model.parameters())


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_past_samples_are_asked_once_a_step(session, name):
    trained, steps = session(f"strategy.name={name}", "model.name=mlp", *PARTS), Steps()
    (method,) = (plugin for plugin in trained.strategy.plugins if hasattr(plugin, "references"))
    asked, batches = [], method.batches
    method.batches = lambda strategy: asked.append(1) or batches(strategy)
    trained.learn(steps)
    assert len(asked) == len(steps.steps[1])


def test_a_schedule_counts_steps_of_the_optimizer(session):
    trained = session("strategy.name=naive", "model.name=mlp", *PARTS, "optimizer.schedule=cosine")
    rates = []

    class Rates(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    trained.learn(Rates())
    steps = len(rates) // 2  # of an experience
    expected = [0.005 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    assert rates == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.name=ridge"], "training.accumulation: has no effect: strategy.name=ridge learns without gradi"),
        (["training.accumulation=0"], "training.accumulation: 0 is too small: it must be at least 1"),
    ],
)
def test_what_would_do_nothing_is_refused(tiny, overrides, line):
    with pytest.raises(UserError) as caught:
        check_config(tiny("training.accumulation=2", *overrides))
    assert str(caught.value).startswith(line)


def test_more_batches_than_there_are_are_refused(tiny):
    assert load_stream(tiny("strategy.batch_size=150", "training.accumulation=5"))
    with pytest.raises(UserError, match=r"^training.accumulation: 6 is too large: no experience has more than 5 batch"):
        load_stream(tiny("strategy.batch_size=150", "training.accumulation=6"))


def test_a_strategy_with_a_loop_of_its_own_is_refused(session):
    class Own(SupervisedTemplate):
        def training_epoch(self, **kwargs):
            pass

    def build(options, context):
        return Own(plugins=context.plugins, **context.common)

    with (
        STRATEGIES.lent("own", "with a loop of its own", build=build),
        pytest.raises(UserError, match=r"^training: strategy.name: 'Own' defines its own training_epoch"),
    ):
        session("strategy.name=own", "training.accumulation=2")
