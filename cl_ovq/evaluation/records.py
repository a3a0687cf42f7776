"""What a result holds of an evaluation, as JSON has it: the types of its fields, and what files are held to."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from cl_ovq.metric_names import QUANTITIES

LARGEST = 2**63


def _quantity(name: str) -> str:
    if name not in QUANTITIES:
        raise ValueError(f"is none of {', '.join(QUANTITIES)}")
    return name


Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
Amount = Annotated[Number, Field(ge=0)]
Quantity = Annotated[str, AfterValidator(_quantity)]


class DistanceRecord(TypedDict):
    """The targets whose distance lies in `[nearest, farthest]`.

    Attributes:
        nearest: in tokens.
        farthest: in tokens.
        value: mean over these targets.
        targets: their number.
    """

    nearest: Count
    farthest: NotRequired[Count]
    value: Number
    targets: NotRequired[Count]


class LengthRecord(TypedDict):
    """A model on test sequences of one length.

    Attributes:
        tokens: of a sequence.
        sequences: number of sequences.
        quantity: what `value` is: `accuracy`, `bits_per_byte` or `squared_error`.
        value: mean over all targets.
        targets: their number.
        state_bytes: of one sequence's state at its end, all layers together.
        distances: the same by the distance from what decides a target (in recall), or by its place in the sequence.
    """

    tokens: Annotated[Count, Field(ge=1)]
    sequences: NotRequired[Count]
    quantity: Quantity
    value: Number
    targets: NotRequired[Count]
    state_bytes: Count
    distances: list[DistanceRecord]


class CapacityRecord(LengthRecord):
    """The same with dictionaries of another capacity.

    Attributes:
        capacity: slots of each head's dictionary.
    """

    capacity: Count


class Generalization(TypedDict):
    """What a trained model does beside its stream: the fields of a result."""

    lengths: list[LengthRecord]
    capacities: list[CapacityRecord]


class AnytimeRecord(TypedDict):
    """One evaluation after training began, see `cl_ovq.evaluation.matrix.Point`."""

    step: Count
    experience: Count
    values: Annotated[list[Number], Field(min_length=1)]


class GrowthRecord(TypedDict):
    """The dictionaries at one moment of training, see `cl_ovq.evaluation.dictionaries.DictionaryRecord`."""

    step: Count
    experience: NotRequired[Count]
    tokens: NotRequired[Amount]
    size: Amount
    effective_size: NotRequired[Amount]
    growth_rate: NotRequired[Number | None]


class PlateauRecord(TypedDict):
    """A stretch in which a dictionary hardly grows, see `cl_ovq.evaluation.plateaus.Plateau`."""

    start_tokens: Amount
    start_step: Count
    end_tokens: Amount | None
    end_step: Count | None


class SlotRecord(TypedDict, total=False):
    """The slots at the end of an experience, see `cl_ovq.evaluation.slot_statistics.SlotStatistics`."""

    experience: Count
    dead: Number | None
    owned: Number | None
    shared: Number | None
    age: Number | None
    drift: Number | None
    quantization_error: Number | None
    owners: list[Number | None]


class _Described(TypedDict):
    """The dictionary of one layer at the end of a run, or several of them together.

    Attributes:
        step: training steps done.
        experience: experiences learned.
        tokens: written, mean over layers.
        growth_rate: None at the end of a run.
        capacity: slots that there are, mean over layers; missing without a dictionary.
        capacity_used: share of them that is in use.
        bytes: of all layers.
    """

    step: NotRequired[Count]
    experience: NotRequired[Count]
    tokens: NotRequired[Amount]
    growth_rate: NotRequired[Number | None]
    capacity: NotRequired[Amount | None]
    capacity_used: NotRequired[Number | None]
    bytes: Count


class LayerRecord(_Described):
    """One layer, or a memory head beside the layers."""

    size: NotRequired[Amount]
    effective_size: NotRequired[Amount]


class Dictionaries(_Described):
    """The dictionaries of a model at the end of a run, and how they came to it.

    Attributes:
        scope: whether each sequence has its own, or all share one; `none` without dictionaries.
        size: slots in use, mean over heads and layers.
        effective_size: perplexity of the assignment, mean over heads and layers.
        layers: each layer by name.
        memory: a memory head beside the dictionaries of layers.
        history: over training.
        slot_statistics: their slots after every experience.
        plateaus: where growth came to rest.
        plateau_tokens: tokens written when it first did.
    """

    scope: Literal["sequence", "shared", "none"]
    size: Amount
    effective_size: Amount
    layers: NotRequired[dict[str, LayerRecord]]
    memory: NotRequired[LayerRecord]
    history: NotRequired[list[GrowthRecord]]
    slot_statistics: NotRequired[list[SlotRecord]]
    plateaus: NotRequired[list[PlateauRecord]]
    plateau_tokens: NotRequired[Amount | None]
