"""Methods that pull weights, or predictions, back to what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_ovq.options import COUNT, option
from cl_ovq.strategies.base import STRATEGIES, Context

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

# What the platform must know of a penalty on weights.
ON_WEIGHTS: dict[str, Any] = {"no_merging": "pulls weights towards earlier values"}
STRENGTH = "weight of the penalty in the loss"


@dataclass
class L2Options:
    """The penalty of plain L2."""

    strength: float = option(0.01, STRENGTH, minimum=0, adjustable=True)


@dataclass
class ImportanceOptions:
    """On what the importance of weights is estimated."""

    importance_samples: int = option(
        500, "samples per experience for the estimate of importance", minimum=1, maximum=COUNT
    )


@dataclass
class EWCOptions(ImportanceOptions):
    """The penalty of EWC."""

    strength: float = option(100.0, STRENGTH, minimum=0, adjustable=True)


@dataclass
class OnlineEWCOptions(EWCOptions):
    """The penalty of online EWC."""

    importance_decay: float = option(1.0, "decay factor of past importance after each experience", minimum=0)


@dataclass
class SIOptions:
    """The penalty of synaptic intelligence."""

    strength: float = option(1.0, STRENGTH, minimum=0, adjustable=True)
    damping: float = option(0.1, "xi, added to squared distances", exclusive_minimum=0)


@dataclass
class MASOptions(ImportanceOptions):
    """The penalty of memory aware synapses."""

    strength: float = option(1.0, STRENGTH, minimum=0, adjustable=True)


@dataclass
class LwFOptions:
    """The penalty of learning without forgetting."""

    strength: float = option(
        1.0, "loss weight of the distance to the teacher's predictions", minimum=0, adjustable=True
    )
    temperature: float = option(
        2.0,
        "temperature of the teacher's predictions; unused for regression",
        exclusive_minimum=0,
        adjustable=True,
    )


@STRATEGIES.enter(
    "l2",
    "control: pulls all weights equally towards those of the last experience (Hsu et al. 2018)",
    options=L2Options,
    **ON_WEIGHTS,
)
def build_l2(options: L2Options, context: Context) -> SupervisedTemplate:
    """Build plain L2."""
    from cl_ovq.training.penalties import PullBack

    return context.naive(PullBack(options.strength))


@STRATEGIES.enter(
    "ewc",
    "elastic weight consolidation (Kirkpatrick et al. 2017); close to naive in class-incremental streams",
    options=EWCOptions,
    **ON_WEIGHTS,
)
def build_ewc(options: EWCOptions, context: Context) -> SupervisedTemplate:
    """Build EWC."""
    from cl_ovq.training.penalties import ElasticWeights

    return context.naive(ElasticWeights(options.strength, context.stream.samples, options.importance_samples))


@STRATEGIES.enter(
    "online_ewc",
    "EWC with one decaying penalty (Schwarz et al. 2018); close to naive in class-incremental streams",
    options=OnlineEWCOptions,
    **ON_WEIGHTS,
)
def build_online_ewc(options: OnlineEWCOptions, context: Context) -> SupervisedTemplate:
    """Build online EWC."""
    from cl_ovq.training.penalties import ElasticWeights

    samples = context.stream.samples
    return context.naive(
        ElasticWeights(options.strength, samples, options.importance_samples, decay=options.importance_decay)
    )


@STRATEGIES.enter(
    "si",
    "synaptic intelligence (Zenke et al. 2017); close to naive in class-incremental streams",
    options=SIOptions,
    **ON_WEIGHTS,
)
def build_si(options: SIOptions, context: Context) -> SupervisedTemplate:
    """Build synaptic intelligence."""
    from cl_ovq.training.penalties import SynapticIntelligence

    return context.naive(SynapticIntelligence(options.strength, options.damping))


@STRATEGIES.enter(
    "mas",
    "memory aware synapses (Aljundi et al. 2018); close to naive in class-incremental streams",
    options=MASOptions,
    **ON_WEIGHTS,
)
def build_mas(options: MASOptions, context: Context) -> SupervisedTemplate:
    """Build memory aware synapses."""
    from cl_ovq.training.penalties import MemoryAwareSynapses

    return context.naive(MemoryAwareSynapses(options.strength, context.stream.samples, options.importance_samples))


@STRATEGIES.enter(
    "lwf", "learning without forgetting (Li and Hoiem 2016); weak in class-incremental streams", options=LwFOptions
)
def build_lwf(options: LwFOptions, context: Context) -> SupervisedTemplate:
    """Build learning without forgetting."""
    from cl_ovq.training.distillation import LearningWithoutForgetting

    return context.naive(LearningWithoutForgetting(options.strength, options.temperature, context.stream))
