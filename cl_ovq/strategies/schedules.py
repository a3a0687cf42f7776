"""Learning-rate schedules by name, with their options: the course of the rate over one experience."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cl_ovq.errors import UserError
from cl_ovq.options import COUNT, NoOptions, option
from cl_ovq.registry import Part, Registry

# The rate of a step as a share of `optimizer.learning_rate`, given the steps before it and those of the experience.
Course = Callable[[int, int], float]
ScheduleBuilder = Callable[[Any], Course]

SCHEDULES: Registry[Part[ScheduleBuilder]] = Registry("schedule", Part)


@SCHEDULES.enter("constant", "constant learning rate")
def build_constant(options: NoOptions) -> Course:
    """Build the course that never changes."""
    return lambda step, steps: 1.0


@dataclass
class WarmUpOptions:
    """How the rate rises."""

    warmup_steps: int = option(100, "linear warm-up steps in each experience", minimum=1, maximum=COUNT)


@SCHEDULES.enter("warmup", "linear warm-up, then constant (Goyal et al. 2017)", options=WarmUpOptions)
def build_warmup(options: WarmUpOptions) -> Course:
    """Build a rise to the learning rate."""
    return _risen(options.warmup_steps, lambda step, steps: 1.0)


@dataclass
class FallingOptions:
    """A rise, which is optional, before the fall."""

    warmup_steps: int = option(
        0,
        "linear warm-up steps in each experience, before the schedule begins",
        minimum=0,
        maximum=COUNT,
    )


@dataclass
class CosineOptions(FallingOptions):
    """Where the rate ends."""

    final_share: float = option(
        0.0,
        "final learning rate of an experience, as a fraction of the initial one",
        minimum=0,
        maximum=1,
        adjustable=True,
    )


@SCHEDULES.enter(
    "cosine", "cosine decay, restarted in each experience (Loshchilov and Hutter 2017)", options=CosineOptions
)
def build_cosine(options: CosineOptions) -> Course:
    """Build a fall along half a cosine.

    Raises:
        UserError: it would not fall.
    """
    least = options.final_share
    if least == 1:
        raise UserError("optimizer.final_share: 1 keeps the learning rate constant: use a smaller value")

    def fall(step: int, steps: int) -> float:
        return least + (1 - least) * (1 + math.cos(math.pi * step / steps)) / 2

    return _risen(options.warmup_steps, fall)


@dataclass
class StepOptions(FallingOptions):
    """Where the rate falls, and how far."""

    milestones: list[float] = option(  # noqa: RUF009 - option makes a field
        [0.7, 0.9],
        "points within an experience at which the learning rate drops, as fractions of its steps",
        exclusive_minimum=0,
        maximum=1,
    )
    step_factor: float = option(0.1, "learning-rate factor at each milestone", minimum=0, adjustable=True)


@SCHEDULES.enter(
    "step",
    "drops by a factor at milestones within each experience (as in iCaRL, Rebuffi et al. 2017)",
    options=StepOptions,
)
def build_step(options: StepOptions) -> Course:
    """Build a fall in steps.

    Raises:
        UserError: it would not fall, or a milestone is the end.
    """
    if not options.milestones or options.step_factor == 1:
        key = "step_factor" if options.milestones else "milestones"
        raise UserError(f"optimizer.{key}: keeps the learning rate constant: use optimizer.schedule=constant instead")
    if 1 in options.milestones:
        raise UserError("optimizer.milestones: 1 is the end of an experience, after its last step: use a smaller value")

    def fall(step: int, steps: int) -> float:
        return options.step_factor ** sum(step >= round(part * steps) for part in options.milestones)

    return _risen(options.warmup_steps, fall)


def _risen(warmup: int, course: Course) -> Course:
    """Return a course with a linear rise before it, which takes its share of the steps."""

    def risen(step: int, steps: int) -> float:
        rise = min(warmup, steps - 1)  # an experience of few steps still ends at the learning rate
        if step < rise:
            return (step + 1) / (rise + 1)
        return course(step - rise, steps - rise)

    return risen
