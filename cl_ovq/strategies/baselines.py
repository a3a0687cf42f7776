"""Fine-tuning and its upper bounds, and early stopping as a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_ovq.options import NoOptions, option
from cl_ovq.strategies.base import STRATEGIES, Context

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


@STRATEGIES.enter("naive", "fine-tuning on each experience in turn: the lower bound")
def build_naive(options: NoOptions, context: Context) -> SupervisedTemplate:
    """Build fine-tuning."""
    return context.naive()


@STRATEGIES.enter(
    "cumulative", "training on all data so far at every experience: growing cost, not continual learning", sees_all=True
)
def build_cumulative(options: NoOptions, context: Context) -> SupervisedTemplate:
    """Build training on all data so far."""
    from cl_ovq.training.baselines import Cumulative

    return Cumulative(plugins=context.plugins, **context.common)


@STRATEGIES.enter(
    "joint",
    "training on the whole stream at once: the upper bound, not continual learning",
    sees_all=True,
    at_once=True,
    no_first_experience="trains once, on all experiences",
    no_merging="trains once, on all experiences",
)
def build_joint(options: NoOptions, context: Context) -> SupervisedTemplate:
    """Build training on the whole stream."""
    from cl_ovq.training.baselines import JointTraining

    return JointTraining(plugins=context.plugins, **context.common)


@dataclass
class EarlyStoppingOptions:
    """When an experience ends."""

    patience: int = option(
        2, "epochs without improvement of the validation loss before an experience ends", minimum=1, maximum=1_000_000
    )


@STRATEGIES.enter(
    "early_stopping",
    "control: fine-tuning with early stopping in each experience; forgets like naive",
    options=EarlyStoppingOptions,
    needs_validation=True,
    no_memory_head="does not know its last epoch",
)
def build_early_stopping(options: EarlyStoppingOptions, context: Context) -> SupervisedTemplate:
    """Build fine-tuning that stops early."""
    from cl_ovq.training.stopping import EarlyStopping

    return context.naive(EarlyStopping(context.stream, options.patience))
