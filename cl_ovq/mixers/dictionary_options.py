"""The options of the dictionaries that OVQ layers learn: the section `dictionary` of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cl_ovq.options import COUNT, option
from cl_ovq.registry import Part, Registry
from kernels import ASSIGNMENT, GROWTH, READ_OUTS, SEEDS, DictionaryOptions
from kernels.options import LARGEST_VALUE_WEIGHT

Schedule = Callable[[Tensor, DictionaryOptions], Tensor]

GROWTHS: Registry[Part[Schedule]] = Registry("growth schedule", Part)
RATES: Registry[Part[None]] = Registry("learning rate", Part)
SCOPES: Registry[Part[None]] = Registry("scope", Part)


@dataclass
class LinearGrowthOptions:
    """How fast a dictionary grows linearly."""

    growth_rate: float = option(0.125, "slots per token", exclusive_minimum=0)


@dataclass
class DirichletGrowthOptions:
    """How fast a dictionary grows with the logarithm of its tokens."""

    concentration: float = option(128.0, "alpha: number of tokens after which growth slows down", exclusive_minimum=0)


@dataclass
class NoveltyGrowthOptions:
    """When a token is new."""

    novelty_threshold: float = option(
        0.7, "a token opens a slot only if its similarity to every slot is at most this", minimum=-1, maximum=1
    )


GROWTHS.add(
    "plateau", "t N / (t + N) slots after t tokens: one per token at first, approaching N", build=GROWTH["plateau"]
)
GROWTHS.add("linear", "a fixed number of slots per token, up to N", build=GROWTH["linear"], options=LinearGrowthOptions)
GROWTHS.add("all", "a slot for every token, up to N; with N >= T this is exact softmax attention", build=GROWTH["all"])
GROWTHS.add(
    "dirichlet",
    "alpha log(1 + t / alpha) slots: expected clusters of a Dirichlet process with concentration alpha",
    build=GROWTH["dirichlet"],
    options=DirichletGrowthOptions,
)
GROWTHS.add(
    "novelty",
    "at most as many slots as plateau, opened only by tokens unlike every slot",
    build=GROWTH["novelty"],
    options=NoveltyGrowthOptions,
)
GROWTHS.add(
    "recycle",
    "a slot for every token, up to N; then similar slots are merged to make room for new tokens",
    build=GROWTH["recycle"],
)


@dataclass
class RateOptions:
    """A rate of its own for the means."""

    rate: float = option(0.05, "rho: step of a mean towards a token", exclusive_minimum=0, maximum=1)


RATES.add("adaptive", "one over the slot's count: exact running means", build=None)
RATES.add("constant", "rho: moving averages", build=None, options=RateOptions)
RATES.add(
    "floored",
    "one over the slot's count, but at least rho: recent tokens keep their weight",
    build=None,
    options=RateOptions,
)


@dataclass
class SharedOptions:
    """What dictionaries have that all sequences share."""

    weight: float | None = option(
        1.0,
        "initial weight of the shared dictionary relative to a sequence's own tokens, as a number of tokens; each head "
        "then learns its weight. If null, the dictionary counts for all tokens written",
        exclusive_minimum=0,
    )
    half_life: int | None = option(
        None, "number of tokens after which all counts are halved; null for never", minimum=1, maximum=2**62
    )
    refresh: bool = option(
        False,
        "rewrite the dictionary after every experience from the replay buffer, encoded by the current model",
    )
    sums: bool = option(
        False,
        "keep separate sums for each task, so that a task can be forgotten; each task takes as many bytes as the "
        "dictionary",
    )


SCOPES.add("sequence", "a new dictionary for every sequence", build=None)
SCOPES.add("task", "one dictionary per experience, shared by all its sequences", build=None, options=SharedOptions)
SCOPES.add("stream", "one dictionary, shared by all sequences of all experiences", build=None, options=SharedOptions)


@dataclass
class ChunkOptions:
    """How a sequence is cut."""

    chunk_size: int = option(
        64, "tokens per chunk (L): attended to exactly, then written together", minimum=1, maximum=COUNT
    )


@dataclass
class DictionaryConfig(ChunkOptions):
    """The key and value dictionaries of OVQ layers."""

    scope: str = option("stream", "lifetime of a dictionary, and what shares it", parts=SCOPES)
    capacity: int = option(512, "slots per layer and head (N)", minimum=1, maximum=COUNT)
    growth: str = option("plateau", "number of slots as a function of tokens", parts=GROWTHS)
    slot_init: str = option("spread", "which tokens of a chunk open the new slots", choices=tuple(SEEDS))
    assignment: str = option(
        "all",
        "slots that the other tokens may join: old (from before the chunk) or all (also the chunk's new ones)",
        choices=tuple(ASSIGNMENT),
    )
    value_weight: float = option(
        0.0,
        "weight of values relative to keys when a token's slot is chosen; 0, as in the paper, uses keys only",
        minimum=0,
        maximum=LARGEST_VALUE_WEIGHT,
    )
    learning_rate: str = option("adaptive", "step size of a slot's means", parts=RATES)
    read_out: str = option("raw", "how the slots' logits are computed", choices=tuple(READ_OUTS))


def operator_options(dictionary: DictionaryConfig) -> DictionaryOptions:
    """Return the operator's part of a dictionary's configuration."""
    names = (field.name for field in dataclasses.fields(DictionaryOptions))
    given: dict[str, Any] = {name: getattr(dictionary, name) for name in names if hasattr(dictionary, name)}
    return DictionaryOptions(**given, seeds=dictionary.slot_init)


def scope_of(dictionary: object) -> str:
    """Return how long the dictionaries of a configuration live; `none` where no layer has any.

    Args:
        dictionary: the section `dictionary`, None where there is none.
    """
    return dictionary.scope if isinstance(dictionary, DictionaryConfig) else "none"
