"""Classifiers by class means, which learn without gradients in the place of the model's head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_ovq.options import NoOptions, option
from cl_ovq.strategies.base import STRATEGIES, Context

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate
    from torch import nn

FACTS: dict[str, Any] = {
    "needs_classes": True,
    "is_head": True,
    "no_first_experience": "never trains the encoder",
    "no_memory_head": "is a head of its own",
}


@dataclass
class SLDAOptions:
    """The covariance of streaming LDA."""

    shrinkage: float = option(1e-4, "shrinkage of the covariance towards the identity", minimum=0, maximum=1)


@STRATEGIES.enter(
    "slda",
    "streaming LDA on the model's features (Hayes and Kanan 2020); the encoder is not trained",
    options=SLDAOptions,
    **FACTS,
)
def build_slda(options: SLDAOptions, context: Context) -> SupervisedTemplate:
    """Build streaming LDA."""
    from cl_ovq.models.discriminant import StreamingDiscriminant

    def head(features: int) -> nn.Module:
        return StreamingDiscriminant(features=features, classes=context.stream.n_classes, shrinkage=options.shrinkage)

    return _with_head(head, context)


@STRATEGIES.enter(
    "ncm", "nearest class mean on the model's features (Mensink et al. 2013); the encoder is not trained", **FACTS
)
def build_ncm(options: NoOptions, context: Context) -> SupervisedTemplate:
    """Build nearest class mean."""
    from cl_ovq.models.discriminant import NearestMean

    def head(features: int) -> nn.Module:
        return NearestMean(features=features, classes=context.stream.n_classes)

    return _with_head(head, context)


def _with_head(head: Callable[[int], nn.Module], context: Context) -> SupervisedTemplate:
    """Put a head in the place of the model's linear one, and write it as a memory head is written."""
    from cl_ovq.models.freezing import freeze_encoder
    from cl_ovq.models.heads import RememberingHead, unwrap
    from cl_ovq.training.memory import MemoryWrites

    network = unwrap(context.common["model"])
    freeze_encoder(network)
    network.head = RememberingHead(head(network.head.in_features), None)
    context.plugins.append(MemoryWrites(context.stream, calibrate=False))
    return context.naive()
