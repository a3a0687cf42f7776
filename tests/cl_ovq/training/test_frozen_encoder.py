"""A frozen encoder computes in evaluation mode, and so does every pass that only reads features."""

import copy
import math
import pickle
from unittest.mock import patch

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from quick_settings import ANYWHERE, fitting, quick
from torch import nn
from torch.nn import functional

from cl_ovq.errors import UserError
from cl_ovq.mixers import dictionaries
from cl_ovq.models import MODELS, Model, freeze_encoder
from cl_ovq.models.heads import RememberingHead, unwrap
from cl_ovq.runs.checking import check_config
from cl_ovq.strategies import STRATEGIES
from cl_ovq.training.passes import evaluating
from streams import rows_of

PROTOTYPES = STRATEGIES.having(lambda strategy: strategy.is_head)
MEMORY = ("model.head=memory", "memory.capacity=40", "strategy.name=naive")
FROZEN = {
    "slda": ("strategy.name=slda",),
    "ncm": ("strategy.name=ncm",),
    "memory": (*MEMORY, "model.train_encoder=never"),
    "linear": ("strategy.name=replay", "model.train_encoder=never"),
}


class Network(nn.Module):
    """All that a mode may change: batch norm, dropout as a module, and dropout as a function."""

    def __init__(self, classes):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(12, classes)

    def features(self, x):
        return functional.dropout(self.encoder(x), 0.5, self.training)

    def forward(self, x):
        return self.head(self.features(x))


OWN = Model(summary="own", build=lambda options, context: Network(context.stream.n_classes))


def heads(model):
    return [module for module in model.modules() if isinstance(module, RememberingHead)]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, after):
    return sorted(name for name in before if not torch.equal(before[name], after[name]))


@pytest.mark.parametrize("overrides", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("mixer", ["softmax", "ovq"])
def test_dropout_changes_nothing_where_the_encoder_is_frozen(session, overrides, mixer):
    found = []
    for dropout in (0, 0.5):
        trained = session(*overrides, f"model.mixer={mixer}", f"model.dropout={dropout}")
        trained.learn()
        found.append(state(trained.model))
    assert found[0].keys() == found[1].keys()
    assert changed(*found) == []


@pytest.mark.parametrize("overrides", FROZEN.values(), ids=FROZEN)
def test_codebooks_of_a_frozen_encoder_stay(session, overrides):
    trained = session(*overrides, "model.mixer=vq", "model.codebook_size=8")
    before = state(trained.model)
    trained.learn()
    encoder = {name: tensor for name, tensor in before.items() if not name.startswith("head.")}
    assert changed(encoder, trained.model.state_dict()) == []


@pytest.mark.parametrize("overrides", FROZEN.values(), ids=FROZEN)
def test_dictionaries_are_no_weights_and_are_still_written(session, overrides):
    trained = session(*overrides)
    trained.learn()
    for dictionary in dictionaries(trained.model).values():
        assert dictionary.writes == trained.strategy.clock.train_iterations


class Watch(SupervisedPlugin):
    """Keeps the encoder's weights and statistics as they are after each experience, and evaluates in its midst."""

    def __init__(self, test):
        super().__init__()
        self.test = test
        self.seen = []

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_epoch_iterations == 1:
            strategy.eval(self.test)  # which sets every module's mode, and sets it back

    def after_training_exp(self, strategy, **kwargs):
        self.seen.append(state(unwrap(strategy.model).encoder))


@pytest.fixture
def own_network(session):
    """`own_network(*overrides)`: a session with the network above in the place of the configured one."""

    def own_network(*overrides):
        with patch.dict(MODELS._parts, own=OWN):
            return session("model.name=own", *overrides)

    return own_network


@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
@pytest.mark.parametrize("choice", ["always", "first_experience", "never"])
def test_statistics_of_a_batch_norm_move_only_when_the_encoder_may(own_network, choice, scenario):
    trained = own_network(f"model.train_encoder={choice}", f"stream.scenario={scenario}")
    watch = Watch(trained.test)
    start = state(unwrap(trained.model).encoder)
    trained.learn(last=[watch])
    first, second = watch.seen
    assert bool(changed(start, first)) == (choice != "never")
    assert bool(changed(first, second)) == (choice == "always")
    network = unwrap(trained.model)
    assert network.head.training
    assert network.training == network.encoder.training == (choice == "always")


def test_class_means_are_those_of_the_features_that_a_query_has(own_network):
    trained = own_network("strategy.name=ncm")
    trained.learn()
    (head,) = heads(trained.model)
    rows = torch.cat([rows_of(experience.dataset) for experience in trained.train])
    y = trained.stream.samples.targets[rows]
    with torch.no_grad():
        features = trained.model.eval().features(trained.stream.samples.gather(rows)).double()
    for label in range(10):
        torch.testing.assert_close(head.memory.means[label], features[y == label].mean(0))


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("scenario", ["class_incremental", "task_incremental"])
def test_a_memory_beside_a_trained_encoder_holds_features_of_evaluation_mode(own_network, epochs, scenario):
    trained = own_network(*MEMORY, f"strategy.epochs={epochs}", f"stream.scenario={scenario}")
    (head,) = heads(trained.model)
    given, expected, observe = [], [], head.memory.observe
    head.memory.observe = lambda x, y: (given.append(x), observe(x, y))

    class Features(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            with torch.no_grad(), evaluating(strategy.model):
                expected.append(unwrap(strategy.model).features(strategy.mb_x))

    trained.learn(Features())
    last = []
    for experience in trained.train:
        steps = math.ceil(len(experience.dataset) / 32)
        last += expected[(epochs - 1) * steps : epochs * steps]
        expected = expected[epochs * steps :]
    for mine, theirs in zip(given, last, strict=True):
        torch.testing.assert_close(mine, theirs)


class Modes(SupervisedPlugin):
    """Counts an encoder's passes in training mode."""

    def __init__(self, model):
        super().__init__()
        self.training = 0
        unwrap(model).encoder.register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        self.training += module.training


@pytest.mark.parametrize(
    ("name", "scenario"), [*((name, "class_incremental") for name in ANYWHERE), ("lwf", "task_incremental")]
)
def test_only_the_pass_that_is_learned_from_is_in_training_mode(own_network, name, scenario):
    """Reference passes, teachers, importance and the like ask what the model says, not what dropout makes of it."""
    trained = own_network(*quick(name, f"stream.scenario={scenario}"))
    modes = Modes(trained.model)
    trained.learn()
    assert modes.training == (0 if name in PROTOTYPES else trained.strategy.clock.train_iterations)


def test_calibration_reads_features_in_evaluation_mode(own_network):
    trained = own_network(*MEMORY, "memory.calibrate=true")
    modes = Modes(trained.model)
    trained.learn()
    assert modes.training == trained.strategy.clock.train_iterations


@pytest.mark.parametrize("name", ["gem", "agem"])
def test_references_are_gradients_of_the_model_that_answers(own_network, name):
    trained = own_network(*fitting(name, ("strategy.buffer_batch_size=1000",)))
    found = []

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            projection = strategy.plugins[0]
            if len(projection.memory) and not found:
                (reference,) = projection.references
                batch = projection.memory.at(torch.arange(len(projection.memory)), strategy.device)
                copied = copy.deepcopy(strategy.model).eval()
                functional.cross_entropy(copied(batch.x), batch.y).backward()
                expected = torch.cat([parameter.grad.flatten() for parameter in copied.parameters()])
                found.append((reference, expected))

    trained.learn(last=[Look()])
    torch.testing.assert_close(*found[0])


def test_copies_of_a_frozen_network_are_frozen_themselves():
    network = Network(3)
    freeze_encoder(network)
    freeze_encoder(network)  # again changes nothing
    for other in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.train() is other
        assert not any(module.training for module in (other, *other.encoder.modules()))
        assert other.head.training
        assert not other.eval().head.training
    twin = copy.deepcopy(network).train()
    assert twin.head.training
    assert not network.head.training  # each sets its own parts


def test_mistakes(tiny):
    with pytest.raises(ValueError, match="Linear has no head"):
        freeze_encoder(nn.Linear(2, 2))
    for name in ("gdumb", "joint", "slda", "ncm"):
        with pytest.raises(UserError, match=rf"model\.train_encoder: first_experience .* strategy\.name={name}"):
            check_config(tiny(f"strategy.name={name}", "model.train_encoder=first_experience"))
    with pytest.raises(UserError, match=r"model\.tied: .* model\.train_encoder=always"):
        check_config(tiny("model.name=sequence_model", "model.tied=true", "model.train_encoder=never"))
