"""Classifiers that learn without gradients, in one pass, in the place of the model's head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_ovq.errors import UserError
from cl_ovq.options import COUNT, WIDEST, option
from cl_ovq.strategies.base import STRATEGIES, Context

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

    from cl_ovq.models.gradient_free import GradientFreeHead

# What the platform must know of a strategy that is a head.
HEAD: dict[str, Any] = {
    "needs_classes": True,
    "is_head": True,
    "no_first_experience": "never trains the encoder",
    "no_memory_head": "is a head itself",
}


@dataclass
class SLDAOptions:
    """The covariance of streaming LDA."""

    shrinkage: float = option(1e-4, "shrinkage of the covariance towards the identity", minimum=0, maximum=1)


@STRATEGIES.enter(
    "slda",
    "streaming LDA on the model's features (Hayes and Kanan 2020); does not train the encoder",
    options=SLDAOptions,
    **HEAD,
)
def build_slda(options: SLDAOptions, context: Context) -> SupervisedTemplate:
    """Build streaming LDA."""
    from cl_ovq.models.discriminant import StreamingDiscriminant

    return with_head(StreamingDiscriminant, context, shrinkage=options.shrinkage)


@dataclass
class NCMOptions:
    """What is near."""

    distance: str = option(
        "euclidean",
        "distance to the class means: euclidean, or cosine, which suits many pretrained features",
        choices=("euclidean", "cosine"),
    )


@STRATEGIES.enter(
    "ncm",
    "nearest class mean on the model's features (Mensink et al. 2013); does not train the encoder",
    options=NCMOptions,
    **HEAD,
)
def build_ncm(options: NCMOptions, context: Context) -> SupervisedTemplate:
    """Build nearest class mean."""
    from cl_ovq.models.discriminant import NearestMean

    return with_head(NearestMean, context, distance=options.distance)


@dataclass
class RidgeOptions:
    """The penalty of ridge regression."""

    strength: float | None = option(
        None,
        "penalty, like scikit-learn's alpha; tuned on a fifth of each experience's training data if null",
        exclusive_minimum=0,
    )


@STRATEGIES.enter(
    "ridge",
    "exact ridge regression on the model's features (recursive least squares); does not train the encoder",
    options=RidgeOptions,
    tells_vectors=True,
    **HEAD,
)
def build_ridge(options: RidgeOptions, context: Context) -> SupervisedTemplate:
    """Build ridge regression."""
    from cl_ovq.models.ridge import RidgeHead
    from cl_ovq.models.value_ridge import ValueRidgeHead

    head = ValueRidgeHead if context.stream.kind == "vectors" else RidgeHead
    return with_head(head, context, strength=options.strength)


@dataclass
class RanPACOptions(RidgeOptions):
    """The random projection before ridge regression."""

    width: int = option(2000, "number of random features (M in the paper)", minimum=1, maximum=WIDEST)


@STRATEGIES.enter(
    "ranpac",
    "ridge regression on a random projection of the model's features (McDonnell et al. 2023); does not train "
    "the encoder",
    options=RanPACOptions,
    **HEAD,
)
def build_ranpac(options: RanPACOptions, context: Context) -> SupervisedTemplate:
    """Build RanPAC, without its training of the encoder on the first experience."""
    from cl_ovq.models.ridge import RidgeHead

    return with_head(RidgeHead, context, strength=options.strength, width=options.width)


@dataclass
class FeCAMOptions:
    """The covariances of FeCAM."""

    shrinkage: float = option(1.0, "shrinkage of each class's covariance (gamma in the paper)", minimum=0)
    tukey: float = option(0.5, "exponent of the Tukey transform of the features; 1 for none", exclusive_minimum=0)


@STRATEGIES.enter(
    "fecam",
    "Mahalanobis distance with one covariance per class (Goswami et al. 2023); does not train the encoder",
    options=FeCAMOptions,
    **HEAD,
)
def build_fecam(options: FeCAMOptions, context: Context) -> SupervisedTemplate:
    """Build FeCAM."""
    from cl_ovq.models.fecam import MahalanobisHead

    return with_head(MahalanobisHead, context, shrinkage=options.shrinkage, tukey=options.tukey)


@dataclass
class NeighboursOptions:
    """How many samples are kept, and how many are asked."""

    neighbours: int = option(5, "number of neighbours that vote (k)", minimum=1, maximum=COUNT)
    capacity: int = option(2000, "stored samples, over all classes", minimum=1, maximum=COUNT)
    capacity_bytes: int | None = option(
        None, "size of the stored samples in bytes, instead of capacity", minimum=1, maximum=2**50
    )


@STRATEGIES.enter(
    "knn",
    "nearest neighbours among stored features within a budget (Cover and Hart 1967); does not train the encoder",
    options=NeighboursOptions,
    **HEAD,
)
def build_knn(options: NeighboursOptions, context: Context) -> SupervisedTemplate:
    """Build nearest neighbours.

    Raises:
        UserError: not one sample of each class fits.
    """
    from cl_ovq.models.heads import unwrap
    from cl_ovq.models.neighbours import NearestNeighbours, sample_bytes

    key, capacity, classes = "capacity", options.capacity, context.stream.n_classes
    size = sample_bytes(unwrap(context.common["model"]).head.in_features)
    if options.capacity_bytes is not None:
        key, capacity = "capacity_bytes", options.capacity_bytes // size
    if capacity < classes:
        given = getattr(options, key)
        unit = f" of {size} bytes" if key == "capacity_bytes" else ""
        raise UserError(
            f"strategy.{key}: {given} is too small: it must hold one sample{unit} per class ({classes} classes)"
        )
    return with_head(NearestNeighbours, context, capacity=capacity, neighbours=options.neighbours)


def with_head(head: type[GradientFreeHead], context: Context, **options: Any) -> SupervisedTemplate:
    """Return the strategy of a head that learns without gradients, in the place of the model's linear one.

    Args:
        head: it is given `features`, `classes`, and the options, by keyword.
        context: what the strategy's builder is given.
        options: of the head, plain numbers and text: a saved model keeps them.
    """
    from cl_ovq.models.freezing import freeze_encoder
    from cl_ovq.models.heads import RememberingHead, unwrap
    from cl_ovq.training.memory import MemoryWrites

    network = unwrap(context.common["model"])
    freeze_encoder(network)
    made = head(features=network.head.in_features, classes=network.head.out_features, **options)
    made.settings = options
    network.head = RememberingHead(made, None)
    context.plugins.append(MemoryWrites(context.stream, calibrate=False))
    return context.naive()
