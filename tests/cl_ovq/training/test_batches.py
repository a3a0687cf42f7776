"""Whole batches are bit for bit what Avalanche's own loaders give."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from cl_ovq.config import StrategyConfig, from_dict
from cl_ovq.models.heads import TaskMaskedModel
from cl_ovq.strategies import STRATEGIES, Context
from cl_ovq.training.batches import BatchedData
from streams import SplitOptions, build_stream


class Batches(SupervisedPlugin):
    """Keeps every batch that is trained or evaluated on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _keep(self, kind, strategy):
        x, y, t = strategy.mbatch
        self.seen.append((kind, x.clone(), y.clone(), t.clone()))

    def before_training_iteration(self, strategy, **kwargs):
        self._keep("train", strategy)

    def before_eval_iteration(self, strategy, **kwargs):
        self._keep("eval", strategy)


@pytest.fixture(scope="module")
def stream():
    built = {}

    def build(scenario):
        if scenario not in built:
            built[scenario] = build_stream("split_digits", SplitOptions(scenario=scenario, experiences=4), seed=1)
        return built[scenario]

    return build


def batches(stream, config, plugins):
    """Return the batches of a strategy over the stream, and the weights of its model in the end."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, stream.n_classes))
    if stream.scenario == "task_incremental":
        model = TaskMaskedModel(model, stream.classes_per_experience, stream.n_classes)
    seen = Batches()
    common = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": config.batch_size,
        "train_epochs": config.epochs,
        "eval_mb_size": 100,
        "device": torch.device("cpu"),
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    strategy = STRATEGIES[config.name].build(config, Context([*plugins, seen], common, stream))
    train = list(stream.benchmark.streams["train"])
    for part in [train] if config.name == "joint" else train:
        strategy.train(part, eval_streams=[])
        strategy.eval(stream.benchmark.streams["test"])
    return seen.seen, [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("scenario", ["class_incremental", "domain_incremental", "task_incremental"])
@pytest.mark.parametrize(
    "changes",
    [
        {"name": "naive", "epochs": 2},
        {"name": "replay", "buffer_policy": "class_balanced"},
        {"name": "replay", "buffer_policy": "experience_balanced", "epochs": 2},
        {"name": "replay", "buffer_policy": "reservoir", "buffer_batch_size": 7},
        {"name": "replay", "buffer_size": 3, "buffer_batch_size": 8},
        {"name": "cumulative"},
        {"name": "joint"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_batches_are_avalanches(stream, scenario, changes):
    settings = {"batch_size": 64} | ({"buffer_size": 30} if changes["name"] == "replay" else {}) | changes
    config = from_dict({"stream": {"name": "split_digits"}, "strategy": settings}).strategy
    expected, expected_weights = batches(stream(scenario), config, [])
    found, weights = batches(stream(scenario), config, [BatchedData(stream(scenario).samples)])
    assert len(found) == len(expected) > 10
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[0] == theirs[0]
        for a, b in zip(mine[1:], theirs[1:], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(weights, expected_weights, strict=True))


def test_batches_differ_between_epochs(stream):
    config = StrategyConfig("naive", batch_size=2000, epochs=2)
    found, _ = batches(stream("class_incremental"), config, [BatchedData(stream("class_incremental").samples)])
    (_, first, _, _), (_, second, _, _) = [batch for batch in found if batch[0] == "train"][:2]
    assert first.shape == second.shape
    assert not torch.equal(first, second)
