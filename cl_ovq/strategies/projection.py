"""Methods that project a gradient where it would raise the loss on past samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_ovq.options import option
from cl_ovq.strategies.base import STRATEGIES, Context
from cl_ovq.strategies.buffer import BatchOptions, BufferOptions, buffer_samples

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


@dataclass
class GEMOptions(BufferOptions):
    """The buffer, shared alike among experiences, and the projection of GEM."""

    margin: float = option(0.5, "gamma, minimum weight of past gradients in a projection", minimum=0)


@dataclass
class AGEMOptions(BatchOptions, BufferOptions):
    """The buffer of A-GEM, shared alike among experiences."""


@STRATEGIES.enter(
    "gem",
    "gradient episodic memory (Lopez-Paz and Ranzato 2017): one constraint per past experience",
    options=GEMOptions,
)
def build_gem(options: GEMOptions, context: Context) -> SupervisedTemplate:
    """Build GEM."""
    from cl_ovq.training.projection import EpisodicGradients

    samples = buffer_samples(options, context.stream)
    return context.naive(EpisodicGradients(samples, context.stream.samples, options.margin))


@STRATEGIES.enter(
    "agem",
    "averaged GEM (Chaudhry et al. 2019): one constraint for all; weak in class-incremental streams",
    options=AGEMOptions,
)
def build_agem(options: AGEMOptions, context: Context) -> SupervisedTemplate:
    """Build A-GEM."""
    from cl_ovq.training.projection import AverageGradients

    batch = context.common["train_mb_size"] if options.buffer_batch_size is None else options.buffer_batch_size
    return context.naive(AverageGradients(buffer_samples(options, context.stream), context.stream.samples, batch))
