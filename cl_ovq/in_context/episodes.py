"""Episodes that a learner's weights are learned on: each a stream of its own, of classes drawn for it.

Letters: `B` episodes, `S` samples of all tasks, `Q` questions, `D` features, `N` samples that there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_ovq.errors import UserError
from cl_ovq.in_context.standardisation import standardise, statistics_of
from cl_ovq.options import option
from streams.gaussian_classes import GaussianClasses

STANDARDISED_BY = 64  # samples of the first task that the features of synthetic classes are standardised by


@dataclass
class EpisodeOptions:
    """The episodes that a learner's weights are learned on, and how long."""

    steps: int = option(3000, "training steps", minimum=1, maximum=10**9)
    episodes: int = option(16, "episodes per step", minimum=1, maximum=10**6)
    tasks: int = option(5, "maximum number of tasks per episode; each step draws the number", minimum=1, maximum=10**4)
    classes: int = option(2, "classes per task", minimum=1, maximum=10**4)
    samples: int = option(
        10, "maximum number of samples per class; each step draws the number", minimum=1, maximum=10**5
    )
    questions: int = option(20, "test samples per episode, over all its tasks", minimum=1, maximum=10**5)
    learning_rate: float = option(
        2e-3, "AdamW learning rate, with warm-up and cosine decay to zero", exclusive_minimum=0
    )

    @property
    def longest(self) -> int:
        """Tokens of the longest episode, without its test samples."""
        return self.tasks * self.classes * self.samples


@dataclass(frozen=True)
class Episodes:
    """Episodes of one step.

    Args:
        x: `[B, S + Q, D]` samples in order of their tasks, then test samples; each has length one.
        labels: `[B, S + Q]` of the episode's classes.
        classes: how many there are.
        samples: S.
    """

    x: Tensor
    labels: Tensor
    classes: int
    samples: int


# Draws the episodes of a step.
Draw = Callable[[EpisodeOptions, torch.Generator], Episodes]


def gaussian_episodes(features: int) -> Draw:
    """Return what draws episodes of synthetic classes, standardised by their first task as a stream's features are.

    Args:
        features: D.
    """

    def draw(options: EpisodeOptions, generator: torch.Generator) -> Episodes:
        tasks, each = _sizes(options, generator)
        b, c = options.episodes, options.classes
        drawn = GaussianClasses.draw(b, tasks * c, features, generator)
        labels = _labels(options, tasks, each, generator)
        first = torch.randint(0, c, (b, STANDARDISED_BY), generator=generator)
        mean, deviation = statistics_of(drawn.samples(first, generator))
        x = standardise(drawn.samples(labels, generator), mean, deviation)
        return Episodes(x, labels, tasks * c, tasks * c * each)

    return draw


class DrawnFromData:
    """Draws episodes of the classes of a data set.

    A test sample is never among the samples of its episode.

    Args:
        x: samples `[N, D]`, standardised.
        targets: `[N]` int64, of classes from 0 on.
        options: what will be drawn.

    Raises:
        UserError: there are too few classes, or samples of one.
    """

    def __init__(self, x: Tensor, targets: Tensor, options: EpisodeOptions) -> None:
        self.x = x
        counts = targets.bincount()
        if len(counts) < options.tasks * options.classes:
            raise UserError(
                f"learner.tasks: episodes of {options.tasks} tasks of {options.classes} classes need "
                f"{options.tasks * options.classes} classes, but learner.data has {len(counts)}"
            )
        if int(counts.min()) <= options.samples:
            raise UserError(
                f"learner.samples: {options.samples} training samples and one test sample per class exceed the "
                f"{int(counts.min())} samples of some class in learner.data"
            )
        order = targets.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        places = torch.arange(int(counts.max()))
        # Rows of a class, and its first one in the place of those that it lacks, which are never drawn.
        self.rows = order[starts[:, None] + torch.where(places < counts[:, None], places, 0)]
        self.lacking = places >= counts[:, None]
        self.counts = counts

    def __call__(self, options: EpisodeOptions, generator: torch.Generator) -> Episodes:
        """Draw the episodes of a step."""
        tasks, each = _sizes(options, generator)
        classes = torch.rand(options.episodes, len(self.counts), generator=generator).argsort(-1)
        classes = classes[:, : tasks * options.classes]  # [B, C]
        keys = torch.rand(*classes.shape, self.rows.shape[1], generator=generator)
        order = keys.masked_fill(self.lacking[classes], 2.0).argsort(-1)  # of a class's rows; what it lacks comes last
        labels = _labels(options, tasks, each, generator)
        asked = labels[:, tasks * options.classes * each :]
        left = self.counts[classes.gather(1, asked)] - each
        chosen = each + (torch.rand(asked.shape, generator=generator) * left).long()
        given = labels[:, : tasks * options.classes * each]
        # The n-th sample of a class in the episode is the n-th of its order.
        hot = torch.nn.functional.one_hot(given, tasks * options.classes)
        number = (hot.cumsum(1) - 1).gather(2, given[..., None])[..., 0]
        place = torch.cat([number, chosen], 1)
        b = torch.arange(options.episodes)[:, None]
        rows = self.rows[classes[b, labels], order[b, labels, place]]
        return Episodes(self.x[rows], labels, tasks * options.classes, given.shape[1])


def _sizes(options: EpisodeOptions, generator: torch.Generator) -> tuple[int, int]:
    """Draw tasks and samples of a class of a step's episodes."""

    def whole(high: int) -> int:
        return int(torch.randint(1, high + 1, (), generator=generator))

    return whole(options.tasks), whole(options.samples)


def _labels(options: EpisodeOptions, tasks: int, each: int, generator: torch.Generator) -> Tensor:
    """Draw the labels `[B, S + Q]` of episodes: task after task, each in random order, then those asked for."""
    b, c = options.episodes, options.classes
    of_task = torch.arange(c).repeat_interleave(each)
    order = torch.rand(b, tasks, c * each, generator=generator).argsort(-1)
    supports = (of_task[order] + c * torch.arange(tasks)[:, None]).flatten(1)
    questions = torch.randint(0, tasks * c, (b, options.questions), generator=generator)
    return torch.cat([supports, questions], 1)
