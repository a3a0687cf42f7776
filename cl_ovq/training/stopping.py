"""Early stopping: a control, which learns each experience for less long."""

from __future__ import annotations

import math
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from cl_ovq.models.normalisation import running_statistics
from cl_ovq.training.criteria import count_targets, target_losses
from cl_ovq.training.passes import Tensors, evaluating, logits_of, trained
from cl_ovq.training.replay import tasks_of
from streams import Stream, rows_of

_BATCH = 512


class EarlyStopping(SupervisedPlugin):
    """Stops an experience when its validation loss has not fallen for some epochs, and takes the best weights back.

    With the weights go the running statistics of batch norm, which are of no use with others. Only validation samples
    of the experience itself count. What dictionaries saw in the later epochs they keep.

    Args:
        stream: with a validation stream.
        patience: epochs without improvement.
    """

    STATE = ("best", "waited", "weights")  # of a checkpoint

    def __init__(self, stream: Stream, patience: int) -> None:
        super().__init__()
        self.stream = stream
        self.patience = patience
        self.best = math.inf
        self.waited = 0
        self.weights: Tensors = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin anew."""
        self.best, self.waited, self.weights = math.inf, 0, {}

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Look whether the epoch improved the loss."""
        loss = self.validation_loss(strategy)
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.weights = {name: tensor.detach().clone() for name, tensor in _learned(strategy.model).items()}
            return
        self.waited += 1
        if self.waited >= self.patience:
            strategy.stop_training()

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take the best weights, of which no copy is held until the next experience."""
        for name, tensor in _learned(strategy.model).items():
            if name in self.weights:
                tensor.copy_(self.weights[name])
        self.weights = {}

    @torch.no_grad()
    def validation_loss(self, strategy: Any) -> float:
        """Return the mean loss of the targets of the experience's validation samples."""
        validation = list(self.stream.benchmark.streams["validation"])
        dataset = validation[strategy.experience.current_experience].dataset
        total, count, rows, tasks = 0.0, 0, rows_of(dataset), tasks_of(dataset)
        with evaluating(strategy.model):
            for part in torch.arange(len(rows)).split(_BATCH):
                x = self.stream.samples.gather(rows[part]).to(strategy.device)
                y = self.stream.samples.targets[rows[part]].to(strategy.device)
                outputs = logits_of(strategy.model, x, tasks[part].to(strategy.device))
                total += float(target_losses(outputs, y).sum())
                count += count_targets(y)
        return total / max(1, count)


def _learned(model: nn.Module) -> Tensors:
    """Return what an epoch has changed, dictionaries apart: weights, and running statistics of batch norm."""
    return trained(model) | running_statistics(model)
