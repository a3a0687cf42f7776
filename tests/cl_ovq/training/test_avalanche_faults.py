"""Why these methods are not Avalanche's own: what goes wrong in the installed version, shown on it.

A test that fails here says that Avalanche has been repaired, and that ours may go.
"""

from types import SimpleNamespace

import pytest
import qpsolvers
import torch
from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training import ACECriterion
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    GDumbPlugin,
    GEMPlugin,
    LwFPlugin,
    MASPlugin,
    MIRPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import DER, ER_ACE, Naive, StreamingLDA
from torch import nn

from cl_ovq.models.heads import TaskMaskedModel
from streams import SplitOptions, build_stream

pytestmark = pytest.mark.filterwarnings("ignore")


def stream_of(scenario, experiences=2):
    return build_stream("split_digits", SplitOptions(scenario=scenario, experiences=experiences), seed=0)


def linear(stream):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, stream.n_classes))
    if stream.scenario != "task_incremental":
        return model
    return TaskMaskedModel(model, stream.classes_per_experience, stream.n_classes)


class Watch(SupervisedPlugin):
    """Notes of every step whether anything is replayed."""

    def __init__(self):
        super().__init__()
        self.replays = []

    def after_update(self, strategy, **kwargs):
        self.replays.append(getattr(strategy, "replay_loader", None) is not None)


def train(stream, *plugins, kind=Naive, **options):
    model, seen = linear(stream), Watch()
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        plugins=[*plugins, seen],
        evaluator=EvaluationPlugin(loggers=[]),
        **options,
    )
    for experience in stream.benchmark.streams["train"]:
        strategy.train(experience, eval_streams=[])
    return strategy, seen


def test_a_batch_of_joint_training_cannot_be_smaller_than_the_number_of_tasks():
    tasks = [experience.dataset for experience in stream_of("task_incremental").benchmark.streams["train"]]
    with pytest.raises(AssertionError):
        TaskBalancedDataLoader(concat_datasets(tasks), batch_size=1)


def test_si_sees_no_step_since_it_keeps_the_weights_themselves_and_no_copy():
    si = SynapticIntelligencePlugin(si_lambda=1.0)
    train(stream_of("class_incremental"), si)
    assert all((data.data == 0).all() for data in si.syn_data["cum_trajectory"].values())
    assert all((data.data == 0).all() for data in si.ewc_data[1].values())


OPPOSITE = [(torch.tensor([x]), torch.tensor(0), torch.tensor(0)) for x in (1.0, -1.0)]


def test_ewc_finds_the_fisher_information_of_a_batchs_mean_gradient_whose_parts_cancel():
    """Each of two samples with opposite gradients needs the weight; their mean does not show it."""
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    found, single = (
        EWCPlugin(ewc_lambda=1.0).compute_importances(model, criterion, optimizer, OPPOSITE, "cpu", size)["weight"]
        for size in (2, 1)
    )
    assert (found.data == 0).all()
    assert (single.data > 0.2).all()


def test_mas_finds_the_importance_of_a_batchs_mean_gradient_whose_parts_cancel():
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.ones_(model.bias)
    found, single = (
        MASPlugin()._get_importance(
            SimpleNamespace(
                model=model,
                experience=SimpleNamespace(dataset=OPPOSITE),
                train_mb_size=size,
                device="cpu",
                optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            )
        )["weight"]
        for size in (2, 1)
    )
    assert float(found.data) == 0
    assert float(single.data) == 2


def test_gem_has_no_solver():
    assert "quadprog" not in qpsolvers.available_solvers
    with pytest.raises(qpsolvers.SolverNotFound):
        train(stream_of("class_incremental"), GEMPlugin(patterns_per_experience=20, memory_strength=0.5))


def test_er_ace_takes_the_logarithm_of_a_vanished_probability():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
    targets = torch.tensor([0, 1])
    assert ACECriterion()(logits, targets, logits, targets).isnan()


def test_mir_replays_nothing_where_classes_come_back():
    """Its memory leaves out the classes of the last batch, which here are all classes."""
    mir = MIRPlugin(batch_size_mem=10, mem_size=50)
    train(stream_of("domain_incremental", experiences=5), mir)
    assert len(mir.storage_policy.buffer) == 50
    assert mir.replay_loader is None


@pytest.mark.parametrize("kind", [DER, ER_ACE])
def test_der_and_er_ace_replay_nothing_where_the_memory_is_smaller_than_the_batch(kind):
    _, silent = train(stream_of("class_incremental"), kind=kind, mem_size=20, batch_size_mem=32)
    _, heard = train(stream_of("class_incremental"), kind=kind, mem_size=20, batch_size_mem=20)
    assert any(heard.replays)
    assert not any(silent.replays)


def test_der_knows_no_task_labels():
    with pytest.raises(TypeError, match="task_labels"):
        train(stream_of("task_incremental"), kind=DER, mem_size=20, batch_size_mem=10)


def test_lwf_takes_every_model_with_task_labels_for_one_with_a_head_per_task():
    with pytest.raises((RuntimeError, TypeError, AttributeError)):
        train(stream_of("task_incremental"), LwFPlugin())


def test_gdumb_trains_another_object_than_the_model_it_was_given():
    stream = stream_of("class_incremental")
    strategy, _ = train(stream, GDumbPlugin(mem_size=20))
    given = linear(stream)
    held = strategy.optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in strategy.model.parameters()}
    assert not torch.equal(given[1].weight, strategy.model[1].weight)


def test_slda_names_classes_that_it_has_never_seen():
    slda = StreamingLDA(
        slda_model=nn.Flatten(),
        criterion=nn.CrossEntropyLoss(),
        input_size=2,
        num_classes=3,
        evaluator=EvaluationPlugin(loggers=[]),
    )
    generator = torch.Generator().manual_seed(0)
    for target, mean in ((0, [5.0, 0.0]), (1, [0.0, 5.0])):
        for _ in range(50):
            x = torch.tensor([mean]) + torch.randn(1, 2, generator=generator)
            slda.fit(x, torch.tensor([target]))
    assert slda.predict(torch.tensor([[1.0, 1.0]])).argmax() == 2
