"""Running statistics of batch norm are no weights: what protects weights, decays or counts them leaves these apart."""

from pathlib import Path

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from quick_settings import ANYWHERE, quick
from torch import nn

from cl_ovq.errors import UserError
from cl_ovq.models.normalisation import count_statistics, running_statistics
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.checkpoints import NAME, read_checkpoint
from cl_ovq.strategies import STRATEGIES
from cl_ovq.sweeps.pbt_checkpoint import set_configuration
from cl_ovq.training.memory_usage import method_bytes
from cl_ovq.training.stopping import EarlyStopping

HEADS = STRATEGIES.having(lambda strategy: strategy.is_head)
TRAINED = [name for name in ANYWHERE if name not in HEADS]
pytestmark = pytest.mark.usefixtures("small")


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def plugin_with(trained, attribute):
    (found,) = (plugin for plugin in trained.strategy.plugins if hasattr(plugin, attribute))
    return found


class Own(SupervisedPlugin):
    """Counts a strategy's own passes over training batches."""

    def __init__(self):
        super().__init__()
        self.passes, self.of_experience = 0, 0

    def before_training_exp(self, strategy, **kwargs):
        self.of_experience = 0

    def after_forward(self, strategy, **kwargs):
        self.passes += 1
        self.of_experience += 1


@pytest.mark.parametrize("name", TRAINED)
def test_only_a_steps_own_pass_changes_statistics(session, name):
    trained, own = session(*quick(name, "model.name=small")), Own()
    trained.learn(own)
    counts = {int(part) for key, part in running_statistics(trained.model).items() if key.endswith("tracked")}
    if name == "gdumb":  # which starts every experience from the first weights, and the first statistics
        assert counts == {own.of_experience}
    elif name != "early_stopping":
        assert counts == {own.passes}
    trained.strategy.eval(trained.test)
    assert counts == {int(part) for key, part in running_statistics(trained.model).items() if key.endswith("tracked")}


@pytest.mark.parametrize(
    "overrides",
    [
        *(quick(name) for name in HEADS),
        ("strategy.name=naive", "model.head=memory", "model.train_encoder=never"),
        ("strategy.name=replay", "model.train_encoder=never"),
    ],
    ids=[*HEADS, "memory", "linear"],
)
def test_what_learns_without_training_the_encoder_leaves_statistics_alone(session, overrides):
    trained = session(*overrides, "model.name=small")
    before = copied(running_statistics(trained.model))
    assert len(before) == 3 * 6
    trained.learn()
    after = running_statistics(trained.model)
    assert all(torch.equal(part, before[name]) for name, part in after.items())


@pytest.mark.parametrize("name", ["l2", "ewc", "online_ewc", "si", "mas"])
def test_penalties_hold_weights_and_no_statistics(session, name):
    trained = session(*quick(name, "model.name=small"))
    trained.learn()
    penalty = plugin_with(trained, "importance")
    assert penalty.importance.keys() == penalty.anchor.keys() == dict(trained.model.named_parameters()).keys()
    weights = sum(weight.numel() for weight in trained.model.parameters())
    assert method_bytes(trained.strategy) == 2 * 4 * weights


def test_a_teacher_is_kept_with_its_statistics(session):
    trained = session(*quick("lwf", "model.name=small"))
    trained.learn()
    numbers = sum(weight.numel() for weight in trained.model.parameters()) + count_statistics(trained.model)
    counters = len(running_statistics(trained.model)) // 3
    assert method_bytes(trained.strategy) == 4 * numbers + 8 * counters


def test_early_stopping_takes_the_statistics_of_its_best_epoch(session):
    trained = session(
        "strategy.name=early_stopping",
        "strategy.epochs=6",
        "model.name=small",
        "optimizer.name=sgd",
        "optimizer.learning_rate=1",
    )
    stopping = plugin_with(trained, "patience")
    epochs, best = [], {}

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            epochs.clear()

        def after_training_epoch(self, strategy, **kwargs):
            found = copied(strategy.model.state_dict())
            epochs.append((stopping.validation_loss(strategy), found))

        def after_training_exp(self, strategy, **kwargs):
            best.update(min(epochs, key=lambda epoch: epoch[0])[1])

    trained.learn(Watch())
    assert isinstance(stopping, EarlyStopping)
    losses = [loss for loss, _ in epochs]
    assert losses.index(min(losses)) < len(losses) - 1
    assert all(torch.equal(part, best[name]) for name, part in trained.model.state_dict().items())


def test_results_count_weights_and_statistics_apart(run):
    provenance = run("strategy.name=naive", "model.name=resnet32").provenance
    assert (provenance["parameters"], provenance["running_statistics"]) == (464_154 - 2 * 144, 2272)
    assert run("strategy.name=naive", "model.name=mlp").provenance["running_statistics"] == 0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_weights_of_norms_and_biases_need_not_decay(session, name):
    overrides = ("strategy.name=naive", "model.name=small", f"optimizer.name={name}", "optimizer.learning_rate=0.1")
    trained = session(*overrides, "optimizer.weight_decay=0.5", "optimizer.decay_norm_and_bias=false")
    before = copied(dict(trained.model.named_parameters()))
    kept = {
        f"{key}.{part}"
        for key, module in trained.model.named_modules()
        for part, _ in module.named_parameters(recurse=False)
        if isinstance(module, nn.BatchNorm2d) or part == "bias"
    }
    for weight in before:
        trained.model.get_parameter(weight).grad = torch.zeros_like(before[weight])
    trained.strategy.optimizer.step()
    changed = {key for key, weight in trained.model.named_parameters() if not torch.equal(weight, before[key])}
    assert changed == before.keys() - kept
    trained.learn()
    groups = trained.strategy.optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [len(changed), len(kept)]


def test_decay_that_is_none_cannot_be_kept_from_anything(tiny):
    with pytest.raises(UserError) as caught:
        check_config(tiny("optimizer.decay_norm_and_bias=false"))
    assert str(caught.value).startswith("optimizer.decay_norm_and_bias: has no effect with optimizer.weight_decay=0")
    with pytest.raises(UserError, match=r"has no effect: strategy.name=ncm learns without gradients"):
        check_config(tiny("strategy.name=ncm", "optimizer.weight_decay=1", "optimizer.decay_norm_and_bias=false"))


def test_population_based_training_lets_no_norm_decay(tiny, run):
    overrides = ("strategy.name=naive", "model.name=mlp", "optimizer.decay_norm_and_bias=false")
    result = run(*overrides, "optimizer.weight_decay=0.1")
    file = Path(result.output_dir, NAME)
    config = tiny(*overrides, "optimizer.weight_decay=0.2", "optimizer.learning_rate=0.5")
    set_configuration(file, config)
    groups = read_checkpoint(file)["state"]["optimizer"]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.2), (0.5, 0.0)]
