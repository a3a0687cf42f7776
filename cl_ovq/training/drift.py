"""Remedies against drift: entries of a dictionary that an older encoder wrote.

Two more are options of the dictionary itself: a learning rate with a floor (`dictionary.learning_rate`), and counts
with a half-life (`dictionary.half_life`).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from cl_ovq.mixers import PersistentDictionary, dictionaries
from cl_ovq.mixers.dictionary import Tokens
from cl_ovq.models import freeze_encoder
from cl_ovq.models.heads import unwrap
from cl_ovq.training.memory_usage import replay_buffers
from cl_ovq.training.passes import evaluating
from streams import Stream, rows_of


class FirstExperienceEncoder(SupervisedPlugin):
    """Freezes the encoder after the first experience, so that what is written from then on stays true."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze, if the first experience is over; a run resumed from a checkpoint comes in here, too."""
        if strategy.clock.train_exp_counter:
            freeze_encoder(unwrap(strategy.model))


class DictionaryRefresh(SupervisedPlugin):
    """Writes the dictionaries anew after every experience: the replay buffer, seen by the encoder as it is then.

    Samples are written in the order of their experiences, to which the log credits them, and in batches as large as
    the training's. While they are encoded the dictionaries are as they were; what was in them is gone afterwards.

    Args:
        stream: the stream whose samples the buffer holds.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.samples = stream.samples
        self.origin = torch.full((len(stream.samples),), -1)
        for number, experience in enumerate(stream.benchmark.streams["train"]):
            self.origin[rows_of(experience.dataset)] = number

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Encode the buffer, then write."""
        rows = torch.cat([rows_of(buffer) for buffer in replay_buffers(strategy)])
        found = dictionaries(strategy.model)
        with evaluating(strategy.model):
            batches = [
                (task, _encode(strategy.model, found, self.samples.gather(part).to(strategy.device)))
                for task in self.origin[rows].unique().tolist()
                for part in rows[self.origin[rows] == task].split(strategy.train_mb_size)
            ]
        for name, dictionary in found.items():
            task = dictionary.task
            dictionary.reset()
            for origin, tokens in batches:
                dictionary.begin_task(origin)
                dictionary.write(tokens[name])
            dictionary.begin_task(task)


def _encode(model: nn.Module, found: dict[str, PersistentDictionary], images: torch.Tensor) -> dict[str, list[Tokens]]:
    """Return the tokens that each dictionary would be given for a batch of images."""
    with ExitStack() as stack:
        for dictionary in found.values():
            stack.enter_context(dictionary.recording(evaluation=True))
        unwrap(model)(images)
    return {name: dictionary.take() for name, dictionary in found.items()}
