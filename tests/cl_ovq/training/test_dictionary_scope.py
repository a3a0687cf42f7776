"""Persistent dictionaries over training: written once a step, emptied with their scope, never touched by evaluation."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.mixers import dictionaries

TOKENS = 4  # of an image: 8 x 8 pixels in patches of 4 x 4


class Watch(SupervisedPlugin):
    """Counts training samples, and what the first dictionary holds when each experience's first step begins."""

    def __init__(self):
        super().__init__()
        self.samples = 0
        self.experience_samples = []
        self.held_at_start = []
        self._starting = False

    def before_training_exp(self, strategy, **kwargs):
        self._starting = True
        self.experience_samples.append(0)

    def before_training_iteration(self, strategy, **kwargs):
        if self._starting:
            self.held_at_start.append(
                [int(dictionary.state.tokens) for dictionary in dictionaries(strategy.model).values()]
            )
        self._starting = False
        self.samples += len(strategy.mb_y)
        self.experience_samples[-1] += len(strategy.mb_y)


@pytest.mark.parametrize("strategy", ["naive", "replay", "cumulative", "joint"])
def test_every_step_writes_all_its_tokens_once(session, strategy):
    trained, watch = session(f"strategy.name={strategy}", "strategy.epochs=2"), Watch()
    trained.learn(watch)
    steps = trained.strategy.clock.train_iterations
    found = dictionaries(trained.model)
    assert list(found) == ["blocks.0.mixer.dictionary", "blocks.1.mixer.dictionary"]
    assert steps > 20
    for dictionary in found.values():
        assert dictionary.writes == steps
        assert int(dictionary.state.tokens) == watch.samples * TOKENS
        assert (dictionary.state.counts.sum(-1) == watch.samples * TOKENS).all()
        assert 0 < dictionary.state.size.max() <= 24


@pytest.mark.parametrize("strategy", ["naive", "replay", "cumulative"])
def test_scope_decides_what_an_experience_begins_with(session, strategy):
    held, last = {}, {}
    for scope in ("task", "stream"):
        trained, watch = session(f"dictionary.scope={scope}", f"strategy.name={strategy}"), Watch()
        trained.learn(watch)
        held[scope] = watch.held_at_start
        last[scope] = [int(dictionary.state.tokens) for dictionary in dictionaries(trained.model).values()]
    first, second = watch.experience_samples
    assert held == {"task": [[0, 0], [0, 0]], "stream": [[0, 0], [first * TOKENS] * 2]}
    assert last == {"task": [second * TOKENS] * 2, "stream": [(first + second) * TOKENS] * 2}


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_evaluation_changes_no_byte(session, scenario):
    trained = session(f"stream.scenario={scenario}")
    for part in trained.parts():
        trained.strategy.train(part, eval_streams=[])
        before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
        writes = [dictionary.writes for dictionary in dictionaries(trained.model).values()]
        trained.strategy.eval(trained.test)
        after = trained.model.state_dict()
        assert sum("dictionary" in name for name in before) >= 16
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert [dictionary.writes for dictionary in dictionaries(trained.model).values()] == writes


class ExtraPasses(SupervisedPlugin):
    """Runs the model on other data at every hook that methods use for passes of their own."""

    def _pass(self, strategy):
        assert strategy.model.training
        strategy.model(strategy.mb_x.flip(0) + 1)

    def before_backward(self, strategy, **kwargs):
        self._pass(strategy)

    def after_backward(self, strategy, **kwargs):
        self._pass(strategy)

    def before_update(self, strategy, **kwargs):
        self._pass(strategy)

    def after_update(self, strategy, **kwargs):
        self._pass(strategy)

    def before_training_iteration(self, strategy, **kwargs):
        self._pass(strategy)


def test_passes_that_a_method_adds_are_not_written(session):
    alone, added = session("strategy.name=naive"), session("strategy.name=naive")
    alone.learn()
    added.learn(ExtraPasses())
    expected, found = alone.model.state_dict(), added.model.state_dict()
    assert dictionaries(added.model)["blocks.0.mixer.dictionary"].writes == added.strategy.clock.train_iterations
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_evaluation_in_the_midst_of_training_is_not_written(session):
    class Evaluate(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 2:
                loss, output, batch = strategy.loss, strategy.mb_output, strategy.mbatch
                strategy.model.eval()
                with torch.no_grad():
                    strategy.model(strategy.mb_x)
                strategy.model.train()
                strategy.loss, strategy.mb_output, strategy.mbatch = loss, output, batch

    alone, added = session("strategy.name=naive"), session("strategy.name=naive")
    alone.learn()
    added.learn(Evaluate())
    assert all(torch.equal(added.model.state_dict()[name], t) for name, t in alone.model.state_dict().items())


def test_dictionaries_of_sequences_leave_nothing_behind(session):
    trained = session("dictionary.scope=sequence")
    assert not dictionaries(trained.model)
    trained.learn()
    assert not any("dictionary" in name for name in trained.model.state_dict())
