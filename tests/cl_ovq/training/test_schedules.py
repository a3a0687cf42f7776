"""Learning rates over an experience, against PyTorch's schedulers."""

import io
import math

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from rich.console import Console
from torch.optim import lr_scheduler

from cl_ovq.errors import UserError
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.run import run_experiment
from cl_ovq.strategies import SCHEDULES
from cl_ovq.strategies.schedules import CosineOptions, StepOptions, WarmUpOptions

MLP = ("model.name=mlp", "model.width=8", "strategy.name=naive", "optimizer.learning_rate=0.4")


class Rates(SupervisedPlugin):
    """Notes the rate that each step is made with, by experience."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_exp(self, strategy, **kwargs):
        self.seen.append([])

    def before_update(self, strategy, **kwargs):
        (rate,) = {group["lr"] for group in strategy.optimizer.param_groups}
        self.seen[-1].append(rate)


def rates_of(make, steps, rate=0.4):
    """The rates of one of PyTorch's schedulers, stepped after every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler, found = make(optimizer, steps), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("overrides", "make"),
    [
        (["schedule=constant"], lambda o, n: lr_scheduler.ConstantLR(o, factor=1)),
        (["schedule=cosine"], lambda o, n: lr_scheduler.CosineAnnealingLR(o, n)),
        (["schedule=cosine", "final_share=0.1"], lambda o, n: lr_scheduler.CosineAnnealingLR(o, n, eta_min=0.04)),
        (
            ["schedule=step", "milestones=[0.5, 0.75]", "step_factor=0.2"],
            lambda o, n: lr_scheduler.MultiStepLR(o, [round(n / 2), round(3 * n / 4)], gamma=0.2),
        ),
        (
            ["schedule=warmup", "warmup_steps=9"],
            lambda o, n: lr_scheduler.LinearLR(o, start_factor=0.1, end_factor=1, total_iters=9),
        ),
        (
            ["schedule=cosine", "warmup_steps=4"],
            lambda o, n: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.LinearLR(o, start_factor=0.2, end_factor=1, total_iters=4),
                    lr_scheduler.CosineAnnealingLR(o, n - 4),
                ],
                [4],
            ),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
@pytest.mark.filterwarnings("ignore:.*epoch parameter.*")
def test_every_experience_has_pytorchs_rates_from_the_beginning(session, overrides, make):
    trained = session(
        *MLP, "strategy.epochs=2", "strategy.batch_size=100", *(f"optimizer.{text}" for text in overrides)
    )
    rates = Rates()
    trained.learn(rates)
    assert len(rates.seen) == 2
    for found, experience in zip(rates.seen, trained.train, strict=True):
        steps = 2 * math.ceil(len(experience.dataset) / 100)
        assert found == pytest.approx(rates_of(make, steps))


def test_every_schedule_of_the_registry_is_tried_here():
    assert set(SCHEDULES) == {"constant", "warmup", "cosine", "step"}


def test_an_experience_of_fewer_steps_than_its_rise_ends_at_the_learning_rate():
    course = SCHEDULES["warmup"].build(WarmUpOptions(warmup_steps=100))
    assert [course(step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert SCHEDULES["cosine"].build(CosineOptions(warmup_steps=5))(0, 1) == 1


def test_a_milestone_is_the_step_that_the_literature_means():
    """iCaRL: the rate falls after epochs 49 and 63 of 70, whatever rounding makes of 0.7 * 70."""
    course = SCHEDULES["step"].build(StepOptions(step_factor=0.2))
    for batches in range(1, 60):
        falls = [
            step for step in range(1, 70 * batches) if course(step, 70 * batches) != course(step - 1, 70 * batches)
        ]
        assert falls == [49 * batches, 63 * batches]


def test_mir_looks_ahead_by_the_rate_of_its_step(session):
    trained = session("strategy.name=mir", "optimizer.schedule=cosine", *MLP[:2])
    rates, looked = Rates(), []
    choose = trained.strategy.choose

    def watched():
        looked.append(trained.strategy.optimizer.param_groups[0]["lr"])
        return choose()

    trained.strategy.choose = watched
    trained.learn(rates)
    assert looked == rates.seen[1]
    assert len(set(looked)) == len(looked)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.name=slda"], "optimizer.schedule: has no effect: strategy.name=slda learns without gradients"),
        (
            ["strategy.name=naive", "model.head=memory", "model.train_encoder=never"],
            "optimizer.schedule: has no effect: model.head=memory with model.train_encoder=never learns without",
        ),
        (["optimizer.final_share=1"], "optimizer.final_share: 1 keeps the learning rate"),
        (
            ["optimizer.schedule=step", "optimizer.milestones=[]"],
            "optimizer.milestones: keeps the learning rate",
        ),
        (
            ["optimizer.schedule=step", "optimizer.step_factor=1"],
            "optimizer.step_factor: keeps the learning rate",
        ),
        (
            ["optimizer.schedule=step", "optimizer.milestones=[1]"],
            "optimizer.milestones: 1 is the end of an experience",
        ),
        (["optimizer.schedule=step", "optimizer.milestones=[0]"], "optimizer.milestones[0]: 0 is too small"),
        (["optimizer.schedule=warmup", "optimizer.warmup_steps=0"], "optimizer.warmup_steps: 0 is too small"),
    ],
)
def test_a_schedule_that_would_do_nothing_is_refused(tiny, overrides, line):
    with pytest.raises(UserError) as caught:
        check_config(tiny("optimizer.schedule=cosine", *overrides))
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["optimizer.schedule=warmup", "optimizer.warmup_steps=22"],
            "optimizer.warmup_steps: 22 is too large: no experience has more than 22 steps",
        ),
        (
            ["optimizer.schedule=cosine", "model.name=pixels", "model.head=memory"],
            "optimizer.schedule: has no effect: model.name=pixels with model.head=memory learns without gradients",
        ),
    ],
)
def test_what_the_data_and_the_model_make_useless_is_refused_before_training(tiny, tmp_path, overrides, line):
    config = tiny("strategy.name=naive", "strategy.batch_size=64", "strategy.epochs=2", *overrides)
    config.output_dir = str(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run_experiment(config, Console(file=io.StringIO()))
    assert str(caught.value).startswith(line)
    assert not list(tmp_path.glob("run/*.json"))
