"""Standardises the features of a learner in context by those of the first experience."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.in_context.head import StateHead
from cl_ovq.models.heads import unwrap
from cl_ovq.training.passes import evaluating
from streams import Stream, rows_of

BATCH = 512


class FirstExperience(SupervisedPlugin):
    """Looks through the training samples of the first experience before any is learned.

    Args:
        stream: the stream.
        head: what is to be standardised.
    """

    STATE = ()  # of a checkpoint: the head's is in the model

    def __init__(self, stream: Stream, head: StateHead) -> None:
        super().__init__()
        self.stream = stream
        self.head = head

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Standardise, unless that was done."""
        if self.head.standardised:
            return
        network = unwrap(strategy.model)
        with torch.no_grad(), evaluating(strategy.model):
            parts = [
                network.features(self.stream.samples.gather(rows).to(strategy.device))
                for rows in rows_of(strategy.experience.dataset).split(BATCH)
            ]
        self.head.begin(torch.cat(parts))
