"""GDumb: at every experience a new model, trained on the memory alone."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.storage_policy import ExemplarsBuffer

from cl_ovq.mixers import dictionaries
from cl_ovq.training.passes import Tensors


class GreedyDumb(SupervisedPlugin):
    """GDumb (Prabhu et al. 2020): fills a memory greedily, and learns from nothing else, from scratch.

    The memory takes samples of an experience before it is trained on. The model's weights, dictionaries and memory head
    go back to what they were at the very start, and the optimizer forgets its state.

    Args:
        policy: which samples the memory keeps.
    """

    STATE = ("storage_policy", "initial", "taken")  # of a checkpoint

    def __init__(self, policy: ExemplarsBuffer) -> None:
        super().__init__()
        self.storage_policy = policy
        self.initial: Tensors = {}
        self.taken = 0

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Start from scratch."""
        if not self.initial:
            self.initial = {name: tensor.clone() for name, tensor in strategy.model.state_dict().items()}
            return
        written = {name: dictionary.writes.clone() for name, dictionary in dictionaries(strategy.model).items()}
        strategy.model.load_state_dict(self.initial)
        for name, dictionary in dictionaries(strategy.model).items():
            dictionary.writes.copy_(written[name])  # the number of writes goes on, as when a scope ends
        strategy.optimizer.state.clear()

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Take samples of the experience, and train on the memory instead."""
        if self.taken == strategy.clock.train_exp_counter:  # not so where a run goes on in mid-experience
            self.storage_policy.post_adapt(strategy, strategy.experience)
            self.taken += 1
        strategy.adapted_dataset = self.storage_policy.buffer
