"""Tasks of sine waves: within one, a wave of any amplitude is to be told in another phase.

Letters: `B` episodes, `T` tasks, `S` samples, `D` points of a wave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FREQUENCY = (0.1, 1.1)  # of a task's waves, uniform
AMPLITUDE = (0.5, 1.5)  # of a sample, uniform
NOISE = 0.1  # standard deviation, of the input alone
SPAN = 10.0  # length of time that the points of a wave lie in, evenly, both ends included


@dataclass(frozen=True)
class SineTasks:
    """The tasks of B episodes: `x = a sin(2 pi f t + p) + noise`, `y = a sin(2 pi f t + q)` for a sample of a task.

    A task is a frequency f and two phases, p of the input and q of the target; a sample draws its amplitude a. So x
    says which task it is of, and nothing but the task's samples tells q.

    This is the benchmark `sine` of Lee, Son and Kim 2023 (arXiv 2310.11952) as their published code has it
    (github.com/soochan-lee/cl-as-seq, `dataset.py`): the formula, the ranges of f and a, phases uniform over the
    circle, the noise, and 50 points from 0 to 10, both ends included. Nothing but these facts is theirs.

    Args:
        frequency: f, `[B, T]` fp64.
        input_phase: p, `[B, T]`.
        target_phase: q, `[B, T]`.
    """

    frequency: Tensor
    input_phase: Tensor
    target_phase: Tensor

    @classmethod
    def of(cls, uniform: Tensor) -> SineTasks:
        """Makes tasks from numbers `[3, B, T]` that are uniform from 0 to 1."""
        low, high = FREQUENCY
        return cls(low + (high - low) * uniform[0], 2 * math.pi * uniform[1], 2 * math.pi * uniform[2])

    def waves(self, tasks: Tensor, uniform: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Returns inputs without noise and targets, `[B, S, D]` fp64 each.

        Args:
            tasks: of each sample, `[B, S]`.
            uniform: numbers from 0 to 1 that decide amplitudes, `[B, S]`.
            points: D.
        """
        low, high = AMPLITUDE
        amplitude = (low + (high - low) * uniform)[..., None]
        time = torch.linspace(0, SPAN, points, dtype=torch.float64)
        turns = 2 * math.pi * self.frequency.gather(1, tasks)[..., None] * time
        x, y = ((turns + phase.gather(1, tasks)[..., None]).sin() for phase in (self.input_phase, self.target_phase))
        return amplitude * x, amplitude * y
