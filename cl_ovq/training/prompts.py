"""Training by the methods of pretrained encoders: prompts that learn, and only present classes that compete."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from cl_ovq.encoders.prompts import Prompts
from cl_ovq.models.heads import unwrap

HIDDEN = -1e4  # bias of a class that no experience had yet: finite, so that its loss is


class ExperienceAlone(SupervisedPlugin):
    """Trains an experience as the papers do: its classes compete among themselves only, and the optimizer begins anew.

    Where all experiences have the same classes the former changes nothing. In evaluation all classes so far compete: as
    in a head that grows, a class to come has no chance, which nothing in such a loss would see to. That is the work of
    its bias in a linear head; one of another kind may predict classes to come.
    """

    STATE: tuple[str, ...] = ()  # of a checkpoint

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Give the classes that are new the bias of zero, and those to come none that could win."""
        strategy.optimizer.state.clear()
        head, experience = unwrap(strategy.model).head, strategy.experience
        if not isinstance(head, nn.Linear) or head.bias is None:
            return
        head.bias[list(experience.classes_in_this_experience - experience.previous_classes)] = 0.0
        head.bias[list(experience.future_classes)] = HIDDEN

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Take the other classes out of the logits of the strategy's own pass."""
        absent = torch.ones(strategy.mb_output.shape[1], dtype=torch.bool, device=strategy.device)
        absent[list(strategy.experience.classes_in_this_experience)] = False
        strategy.mb_output = strategy.mb_output.masked_fill(absent, -torch.inf)


class PromptTuning(ExperienceAlone):
    """Tells prompts which experience is learned, and adds what they ask for to the loss of the strategy's own pass.

    Args:
        prompts: of the model.
    """

    def __init__(self, prompts: Prompts) -> None:
        super().__init__()
        self.prompts = prompts

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin an experience."""
        super().before_training_exp(strategy, **kwargs)
        self.prompts.begin(strategy.clock.train_exp_counter)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Collect losses from the pass that begins."""
        self.prompts.losses = []

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Add them."""
        super().after_forward(strategy, **kwargs)
        losses, self.prompts.losses = self.prompts.losses, None  # a copy of the model must hold no part of a graph
        for loss in losses or ():
            strategy.loss = strategy.loss + loss
