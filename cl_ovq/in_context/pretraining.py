"""How the weights of a learner are learned: by gradients over episodes, each a stream of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.in_context.episodes import Draw, EpisodeOptions, Episodes
from cl_ovq.in_context.learner import InContextLearner, random_codes

WARM_UP = 100  # steps
LARGEST_GRADIENT = 1.0


def pretrain(
    learner: InContextLearner,
    options: EpisodeOptions,
    generator: torch.Generator,
    draw: Draw,
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
        episodes = draw(options, generator)
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
