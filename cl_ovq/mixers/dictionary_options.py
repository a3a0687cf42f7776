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

    concentration: float = option(128.0, "alpha, tokens after which growth slows down", exclusive_minimum=0)


@dataclass
class NoveltyGrowthOptions:
    """When a token is new."""

    novelty_threshold: float = option(
        0.7, "largest similarity to a slot at which a token may still start a new one", minimum=-1, maximum=1
    )


GROWTHS.add("plateau", "t N / (t + N) slots after t tokens: slope one at first, never quite N", build=GROWTH["plateau"])
GROWTHS.add("linear", "a fixed number of slots per token, up to N", build=GROWTH["linear"], options=LinearGrowthOptions)
GROWTHS.add("all", "a slot for every token, up to N; with N >= T this is exact softmax attention", build=GROWTH["all"])
GROWTHS.add(
    "dirichlet",
    "alpha log(1 + t / alpha) slots: the expected clusters of a Dirichlet process of concentration alpha",
    build=GROWTH["dirichlet"],
    options=DirichletGrowthOptions,
)
GROWTHS.add(
    "novelty",
    "at most as many as plateau, and only tokens that are unlike every slot start one",
    build=GROWTH["novelty"],
    options=NoveltyGrowthOptions,
)
GROWTHS.add(
    "recycle",
    "a slot for every token, up to N; then slots that are alike unite, to make room for tokens that are new",
    build=GROWTH["recycle"],
)


@dataclass
class RateOptions:
    """A rate of its own for the means."""

    rate: float = option(0.05, "rho, step of a mean towards a token", exclusive_minimum=0, maximum=1)


RATES.add("adaptive", "one over the slot's count: exact running means", build=None)
RATES.add("constant", "rho: moving averages", build=None, options=RateOptions)
RATES.add(
    "floored", "one over the slot's count, but at least rho: recent tokens keep weight", build=None, options=RateOptions
)


@dataclass
class SharedOptions:
    """What dictionaries have that all sequences share."""

    weight: float | None = option(
        1.0,
        "tokens that the shared dictionary counts for beside a sequence's own at first; each head then learns its "
        "weight. If null, the dictionary counts for all tokens written",
        exclusive_minimum=0,
    )
    half_life: int | None = option(
        None, "tokens after which all counts are halved; never if null", minimum=1, maximum=2**62
    )
    refresh: bool = option(
        False,
        "rewrite the dictionary after every experience from the replay buffer, encoded by the model as it is then",
    )
    sums: bool = option(
        False,
        "keep the sums that each task wrote, so that a task can be forgotten; each task takes as many bytes as the "
        "dictionary",
    )


SCOPES.add("sequence", "a new dictionary for every sequence", build=None)
SCOPES.add("task", "one dictionary that all sequences of an experience share", build=None, options=SharedOptions)
SCOPES.add("stream", "one dictionary that all sequences of all experiences share", build=None, options=SharedOptions)


@dataclass
class ChunkOptions:
    """How a sequence is cut."""

    chunk_size: int = option(64, "tokens per chunk (L): read exactly, then written together", minimum=1, maximum=COUNT)


@dataclass
class DictionaryConfig(ChunkOptions):
    """The key and value dictionaries of OVQ layers."""

    scope: str = option("stream", "how long a dictionary lives, and who shares it", parts=SCOPES)
    capacity: int = option(512, "slots per layer and head (N)", minimum=1, maximum=COUNT)
    growth: str = option("plateau", "schedule of slots over tokens", parts=GROWTHS)
    slot_init: str = option("spread", "which tokens of a chunk start the new slots", choices=tuple(SEEDS))
    assignment: str = option(
        "all",
        "slots that the other tokens may join: old (those before the chunk) or all (the chunk's new ones too)",
        choices=tuple(ASSIGNMENT),
    )
    value_weight: float = option(
        0.0,
        "how much values count beside keys where a token's slot is chosen; 0, the paper's, is by keys alone",
        minimum=0,
        maximum=LARGEST_VALUE_WEIGHT,
    )
    learning_rate: str = option("adaptive", "step of a slot's means", parts=RATES)
    read_out: str = option("raw", "logits of the slots", choices=tuple(READ_OUTS))


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
