"""A slow encoder, and a head that is aligned by what is known of all classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_ovq.options import COUNT, option
from cl_ovq.strategies.base import STRATEGIES, Context

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


@dataclass
class SlowEncoderOptions:
    """How slowly an encoder learns."""

    encoder_rate: float = option(
        0.01, "learning rate of the encoder, as a fraction of the head's", exclusive_minimum=0, maximum=1
    )


@dataclass
class SLCAOptions(SlowEncoderOptions):
    """The slow learner, and the alignment of SLCA."""

    align_epochs: int = option(
        5, "alignment epochs after each experience but the first; 0 for none", minimum=0, maximum=1_000_000
    )
    align_samples: int = option(256, "features drawn per class and epoch", minimum=1, maximum=COUNT)
    align_learning_rate: float = option(0.01, "initial learning rate of the alignment", exclusive_minimum=0)
    align_temperature: float | None = option(
        0.1,
        "temperature of the alignment's normalised logits; null: do not normalise them",
        exclusive_minimum=0,
    )


@STRATEGIES.enter(
    "slca",
    "slow learner with classifier alignment (Zhang et al. 2023): samples from one Gaussian per class train the head",
    options=SLCAOptions,
    needs_classes=True,
    aligns_head=True,
    no_memory_head="aligns a linear head",
)
def build_slca(options: SLCAOptions, context: Context) -> SupervisedTemplate:
    """Build SLCA."""
    from cl_ovq.training.alignment import ClassifierAlignment

    return context.naive(ClassifierAlignment(options, context.common["model"], context.stream, context.seed))
