"""Learning in the state of a sequence model, whose weights rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cl_ovq.in_context import LearnerOptions, build_learner
from cl_ovq.options import NoOptions
from cl_ovq.strategies.base import STRATEGIES, Context
from cl_ovq.strategies.gradient_free import HEAD

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


@STRATEGIES.enter(
    "in_context",
    "samples are tokens of one sequence; a frozen sequence model learns classes or vectors in its state "
    "(Lee, Son and Kim 2023)",
    sections={"learner": LearnerOptions},
    tells_vectors=True,
    **HEAD,
)
def build_in_context(options: NoOptions, context: Context, learner: LearnerOptions) -> SupervisedTemplate:
    """Build the strategy whose only memory is the state of a learner.

    Raises:
        UserError: the learner's weights cannot be had.
    """
    from cl_ovq.in_context.head import InContextHead, InContextValues
    from cl_ovq.models.freezing import freeze_encoder
    from cl_ovq.models.heads import RememberingHead, unwrap
    from cl_ovq.training.in_context import FirstExperience
    from cl_ovq.training.memory import MemoryWrites

    network = unwrap(context.common["model"])
    freeze_encoder(network)
    seed = context.seed if learner.weights_seed is None else learner.weights_seed
    kind = context.stream.kind
    head: Any = InContextValues if kind == "vectors" else InContextHead
    made = head(
        features=network.head.in_features,
        classes=context.stream.n_classes,
        learner=build_learner(learner, context.dictionary, seed, kind),
        seed=seed,
    )
    network.head = RememberingHead(made, None)
    context.plugins += [FirstExperience(context.stream, made), MemoryWrites(context.stream, calibrate=False)]
    return context.naive()
