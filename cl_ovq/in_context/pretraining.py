"""How the weights of a learner are learned: on episodes, each a stream of its own whose classes come nowhere else.

Letters: `B` episodes, `S` samples of all tasks, `Q` questions, `D` features, `V` features of a code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.in_context.learner import InContextLearner, random_codes
from cl_ovq.in_context.standardisation import standardise, statistics_of
from cl_ovq.options import option
from streams.gaussian_classes import GaussianClasses

STANDARDISED_BY = 64  # samples of the first task that features are standardised by
WARM_UP = 100  # steps
LARGEST_GRADIENT = 1.0


@dataclass
class PretrainingOptions:
    """The episodes that a learner's weights are learned on, and how long."""

    steps: int = option(3000, "training steps", minimum=1, maximum=10**9)
    episodes: int = option(16, "episodes in a step", minimum=1, maximum=10**6)
    tasks: int = option(5, "most tasks of an episode; each step draws how many", minimum=1, maximum=10**4)
    classes: int = option(2, "classes of a task", minimum=1, maximum=10**4)
    samples: int = option(10, "most samples of a class; each step draws how many", minimum=1, maximum=10**5)
    questions: int = option(20, "test samples of an episode, of all its tasks", minimum=1, maximum=10**5)
    learning_rate: float = option(2e-3, "of AdamW, after a warm-up; it falls to zero as a cosine", exclusive_minimum=0)


@dataclass(frozen=True)
class Episodes:
    """Episodes of one step.

    Args:
        x: `[B, S + Q, D]` samples in order of their tasks, then test samples.
        labels: `[B, S + Q]` of the episode's classes.
        classes: how many there are.
        samples: S.
    """

    x: Tensor
    labels: Tensor
    classes: int
    samples: int


def gaussian_episodes(options: PretrainingOptions, features: int, generator: torch.Generator) -> Episodes:
    """Draw episodes of synthetic classes, standardised by their first task as a stream's features are."""

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    tasks, each, b, c = whole(1, options.tasks), whole(1, options.samples), options.episodes, options.classes
    drawn = GaussianClasses.draw(b, tasks * c, features, generator)
    of_task = torch.arange(c).repeat_interleave(each)
    order = torch.rand(b, tasks, c * each, generator=generator).argsort(-1)
    supports = (of_task[order] + c * torch.arange(tasks)[:, None]).flatten(1)  # [B, S]
    questions = torch.randint(0, tasks * c, (b, options.questions), generator=generator)
    labels = torch.cat([supports, questions], 1)
    first = torch.randint(0, c, (b, STANDARDISED_BY), generator=generator)
    mean, deviation = statistics_of(drawn.samples(first, generator))
    x = standardise(drawn.samples(labels, generator), mean, deviation)
    return Episodes(x, labels, tasks * c, supports.shape[1])


def pretrain(
    learner: InContextLearner,
    options: PretrainingOptions,
    generator: torch.Generator,
    draw: Callable[[PretrainingOptions, int, torch.Generator], Episodes] = gaussian_episodes,
    tell: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> None:
    """Learn a learner's weights.

    The test samples of an episode are of all its tasks, and come after any number of them: a learner that was asked for
    the last task alone would not have to keep the first.

    Args:
        learner: is changed.
        options: how long, and on what.
        generator: of all that is drawn.
        draw: draws the episodes of a step.
        tell: is told of every step: its number from 1, loss and accuracy over the test samples.
    """
    optimizer = torch.optim.AdamW(learner.parameters(), options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / options.steps)),
    )
    learner.train()
    for step in range(1, options.steps + 1):
        episodes = draw(options, learner.features, generator)
        loss, accuracy = _loss(learner, episodes, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        tell(step, float(loss.detach()), accuracy)
    learner.trained_length.fill_(options.tasks * options.classes * options.samples)
    learner.eval()


def _loss(learner: InContextLearner, episodes: Episodes, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return the loss over the test samples of episodes, whose classes get random codes, and their accuracy."""
    codes = random_codes(len(episodes.x), episodes.classes, learner.code, generator=generator)
    of_tokens = codes.gather(1, episodes.labels[..., None].expand(-1, -1, learner.code)).clone()
    of_tokens[:, episodes.samples :] = 0.0
    told, _ = learner(episodes.x, of_tokens)
    logits = learner.logits(told[:, episodes.samples :], codes).flatten(0, 1)
    targets = episodes.labels[:, episodes.samples :].flatten()
    return functional.cross_entropy(logits, targets), float((logits.argmax(-1) == targets).double().mean())
