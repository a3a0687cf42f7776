"""How the weights of a learner are learned: by gradients over episodes, each a stream of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.in_context.episodes import Episodes
from cl_ovq.in_context.learner import InContextLearner, random_codes
from cl_ovq.in_context.sine import ValueEpisodes

WARM_UP = 100  # steps
LARGEST_GRADIENT = 1.0


def pretrain(
    learner: InContextLearner,
    options: Any,
    generator: torch.Generator,
    draw: Callable[[Any, torch.Generator], Any],
    tell: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> None:
    """Learn a learner's weights.

    The test samples of an episode are of all its tasks, and come after any number of them: a learner that was asked for
    the last task alone would not have to keep the first.

    Args:
        learner: is changed.
        options: how long, and on what: `EpisodeOptions` or `SineEpisodeOptions`.
        generator: of all that is drawn.
        draw: draws the episodes of a step, `Episodes` or, for a `ValueLearner`, `ValueEpisodes`.
        tell: is told of every step: its number from 1, loss and accuracy over the test samples; of values, twice the
            loss, which is their mean squared error.
    """
    optimizer = torch.optim.AdamW(learner.parameters(), options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / options.steps)),
    )
    learner.train()
    for step in range(1, options.steps + 1):
        episodes = draw(options, generator)
        loss_of = _value_loss if isinstance(episodes, ValueEpisodes) else _class_loss
        loss, accuracy = loss_of(learner, episodes, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        tell(step, float(loss.detach()), accuracy)
    learner.trained_length.fill_(options.longest)
    learner.eval()


def _class_loss(learner: InContextLearner, episodes: Episodes, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return the loss over the test samples of episodes, whose classes get random codes, and their accuracy."""
    codes = random_codes(len(episodes.x), episodes.classes, learner.code, generator=generator)
    given, asked = episodes.labels.tensor_split([episodes.samples], 1)
    told = _told(learner, episodes, codes.gather(1, given[..., None].expand(-1, -1, learner.code)))
    logits = learner.logits(told, codes).flatten(0, 1)
    targets = asked.flatten()
    return functional.cross_entropy(logits, targets), float((logits.argmax(-1) == targets).double().mean())


def _value_loss(learner: InContextLearner, episodes: ValueEpisodes, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return the mean squared error over the test samples of episodes, twice."""
    given, asked = episodes.y.tensor_split([episodes.samples], 1)
    loss = functional.mse_loss(_told(learner, episodes, given), asked)
    return loss, float(loss.detach())


def _told(learner: InContextLearner, episodes: Episodes | ValueEpisodes, given: Tensor) -> Tensor:
    """Return what a learner tells of the test samples, each of which reads a copy of the state, as in a stream.

    In one sequence with the samples they would write too. A state that is corrected by each token, or that decays, then
    loses what is asked for while it is asked: Gated DeltaNet and Mamba-2 stayed at chance.

    Args:
        learner: with the weights of this step.
        episodes: of this step.
        given: codes or vectors `[B, S, V]` of the samples.
    """
    samples, questions = episodes.x.tensor_split([episodes.samples], 1)
    _, states = learner(samples, given, return_state=True)
    return learner.ask(questions, states)
