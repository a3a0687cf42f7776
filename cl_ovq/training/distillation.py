"""Learning without forgetting: the model of the last experience teaches the present one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.mixers import dictionaries
from cl_ovq.models.heads import unwrap
from cl_ovq.training.criteria import has_target
from cl_ovq.training.passes import around_own_pass, evaluating
from cl_ovq.training.plugin import nbytes_of
from streams import Stream


class LearningWithoutForgetting(SupervisedPlugin):
    """LwF (Li and Hoiem 2016): new samples must keep the old model's predictions for old classes.

    Adds `strength T^2 KL(teacher || student)` at temperature T (Hinton et al. 2015: the factor keeps the gradient's
    size whatever T), over all old classes at once, or per task where streams tell tasks apart. The teacher is a copy,
    dictionaries included, that nothing trains or writes any more.

    Sequences have no old classes: the teacher's prediction of every token that has a target is kept whole. Of values it
    is kept in the mean square, which is the divergence of Gaussians of the variance that squared error stands for;
    there is no temperature then.

    Args:
        strength: weight of the distillation.
        temperature: T.
        stream: the stream.
    """

    STATE = ("teacher", "groups")  # of a checkpoint

    def __init__(self, strength: float, temperature: float, stream: Stream) -> None:
        super().__init__()
        self.strength = strength
        self.temperature = temperature
        self.outputs = None if stream.kind == "classes" else list(range(stream.n_classes))
        self.task_incremental = stream.scenario == "task_incremental"
        self.teacher: nn.Module | None = None
        self.groups: list[list[int]] = []
        self._said: Any = None
        self._listening = False

    @property
    def kept_bytes(self) -> int:
        """Bytes of the teacher."""
        return nbytes_of(self.teacher)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Listen to the strategy's own passes from now on, where a task's mask hides other tasks' classes."""
        if self.task_incremental and not self._listening:
            around_own_pass(strategy, lambda: self._listen(strategy.model))
            self._listening = True

    @contextmanager
    def _listen(self, model: nn.Module) -> Iterator[None]:
        """Keep the logits of a pass as they are before the mask."""
        hook = unwrap(model).register_forward_hook(lambda module, inputs, outputs: setattr(self, "_said", outputs))
        try:
            yield
        finally:
            hook.remove()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the distillation to the loss."""
        said, self._said = self._said if self.task_incremental else strategy.mb_output, None
        if self.teacher is None:
            return
        with torch.no_grad(), evaluating(self.teacher):
            taught = unwrap(self.teacher)(strategy.mb_x)
        asked = has_target(strategy.mb_y)
        said, taught = said[asked].float(), taught[asked]  # [n, C], or values [n]
        if said.ndim == 1:
            strategy.loss = strategy.loss + self.strength * functional.mse_loss(said, taught)
            return
        for group in self.groups:
            strategy.loss = strategy.loss + self.strength * self._distance(said[:, group], taught[:, group])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the model, and remember the classes that it knows."""
        self.teacher = copy.deepcopy(strategy.model).requires_grad_(False)
        for dictionary in dictionaries(self.teacher).values():
            dictionary.last_written = None  # a batch's tokens, for metrics of the model that was copied
        if self.outputs is not None:
            self.groups = [self.outputs]
            return
        classes = sorted(int(label) for label in strategy.experience.classes_in_this_experience)
        if self.task_incremental:
            self.groups.append(classes)
        else:
            self.groups = [sorted({*classes, *(label for group in self.groups for label in group)})]

    def _distance(self, said: Tensor, taught: Tensor) -> Tensor:
        said, taught = (logits.div(self.temperature).log_softmax(1) for logits in (said, taught))
        return self.temperature**2 * functional.kl_div(said, taught, reduction="batchmean", log_target=True)
