"""Baselines that hold data of several tasks, in batches of any size."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from quick_settings import fitting

SMALL = (
    "model.name=mlp",
    "stream.scenario=task_incremental",
    "stream.experiences=5",
    "stream.validation_fraction=0.9",
)


class Seen(SupervisedPlugin):
    """Keeps the rows and tasks of every batch of each experience."""

    def __init__(self):
        super().__init__()
        self.rows, self.tasks = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.rows.append([])
        self.tasks.append(set())

    def before_training_iteration(self, strategy, **kwargs):
        assert len(strategy.mb_y) <= strategy.train_mb_size
        self.rows[-1].append(strategy.dataloader.rows)
        self.tasks[-1] |= set(strategy.mb_task_id.tolist())


@pytest.mark.parametrize("name", ["joint", "cumulative", "gdumb"])
@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_may_be_smaller_than_the_number_of_tasks(session, name, size):
    """Avalanche asserts that it is not. Each sample still comes once in an epoch."""
    trained, seen = session(*fitting(name, ("strategy.buffer_size=40", *SMALL)), f"strategy.batch_size={size}"), Seen()
    trained.learn(last=[seen])
    rows = torch.cat(seen.rows[-1])
    assert seen.tasks[-1] == set(range(5))
    assert len(rows) == len(rows.unique())
    assert len(rows) == (40 if name == "gdumb" else sum(len(e.dataset) for e in trained.train))
    trained.strategy.eval(trained.test)
