"""Episodes of sine waves that a learner's weights are learned on.

Letters: `B` episodes, `S` samples of all tasks, `Q` questions, `D` points of a wave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_ovq.options import option
from streams.sine_waves import NOISE, SineTasks


@dataclass
class SineEpisodeOptions:
    """The episodes of sine waves that a learner's weights are learned on, and how long."""

    steps: int = option(3000, "training steps", minimum=1, maximum=10**9)
    episodes: int = option(16, "episodes per step", minimum=1, maximum=10**6)
    tasks: int = option(20, "maximum number of tasks per episode; each step draws the number", minimum=1, maximum=10**4)
    samples: int = option(5, "samples per task", minimum=1, maximum=10**5)
    questions: int = option(20, "test samples per episode, over all its tasks", minimum=1, maximum=10**5)
    learning_rate: float = option(
        2e-3, "AdamW learning rate, with warm-up and cosine decay to zero", exclusive_minimum=0
    )

    @property
    def longest(self) -> int:
        """Tokens of the longest episode, without its test samples."""
        return self.tasks * self.samples


@dataclass(frozen=True)
class ValueEpisodes:
    """Episodes of one step.

    Args:
        x: `[B, S + Q, D]` samples in order of their tasks, then test samples.
        y: `[B, S + Q, D]` what is to be told of each.
        samples: S.
    """

    x: Tensor
    y: Tensor
    samples: int


def sine_episodes(points: int) -> Callable[[SineEpisodeOptions, torch.Generator], ValueEpisodes]:
    """Return what draws episodes of sine waves, each of tasks of its own.

    Args:
        points: D.
    """

    def draw(options: SineEpisodeOptions, generator: torch.Generator) -> ValueEpisodes:
        b, number = options.episodes, int(torch.randint(1, options.tasks + 1, (), generator=generator))

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, dtype=torch.float64, generator=generator)

        given = torch.arange(number).repeat_interleave(options.samples).expand(b, -1)
        asked = torch.randint(0, number, (b, options.questions), generator=generator)
        tasks = torch.cat([given, asked], 1)
        x, y = SineTasks.of(uniform(3, b, number)).waves(tasks, uniform(*tasks.shape), points)
        x = x + NOISE * torch.randn(x.shape, generator=generator)
        return ValueEpisodes(x.float(), y.float(), given.shape[1])

    return draw
