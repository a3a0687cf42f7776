"""What a strategy keeps beside the model: past samples, and what its method remembers of them."""

from __future__ import annotations

from typing import Any

from avalanche.training.storage_policy import ExemplarsBuffer

from cl_ovq.models.heads import RememberingHead
from cl_ovq.models.memory import MemoryHead
from streams import Samples

# Classes that keep nothing, or whose `kept_bytes` says what: ours, and those of Avalanche that all strategies have.
COUNTED = (
    "cl_ovq.",
    "avalanche.training.templates.",
    "avalanche.training.supervised.strategy_wrappers.",
    "avalanche.training.plugins.evaluation.",
    "avalanche.training.plugins.clock.",
)


def replay_samples(strategy: Any) -> int:
    """Return the number of past samples that a strategy holds."""
    return sum(len(buffer) for buffer in replay_buffers(strategy))


def replay_buffers(strategy: Any) -> list[Any]:
    """Return the past samples that a strategy and its plugins hold, as Avalanche data sets."""
    return [policy.buffer for policy in policies(strategy)]


def replay_bytes(strategy: Any, samples: Samples) -> int:
    """Return the bytes of the past samples that a strategy holds, with what it keeps beside their images (logits)."""
    beside = sum(owner.logits.nbytes for owner in _owners(strategy) if hasattr(owner, "logits"))
    return replay_samples(strategy) * samples.sample_bytes + beside


def method_bytes(strategy: Any) -> int | None:
    """Return the bytes that a method keeps of the past, samples apart: importances, a teacher, statistics of features.

    Dictionaries and memory heads are the model's and are not counted. None where nobody knows: a strategy or plugin
    from outside has no `kept_bytes`, and no storage policy either.
    """
    heads = [module.memory for module in strategy.model.modules() if isinstance(module, RememberingHead)]
    statistics = sum(head.nbytes - _dictionary_bytes(head) for head in heads if not isinstance(head, MemoryHead))
    kept = [_kept_bytes(owner) for owner in _owners(strategy)]
    known = [size for size in kept if size is not None]
    return statistics + sum(known) if len(known) == len(kept) else None


def _dictionary_bytes(head: Any) -> int:
    return sum(dictionary.nbytes for dictionary in getattr(head, "dictionaries", ()))


def policies(strategy: Any) -> list[ExemplarsBuffer]:
    """Return the policies of all memories of a strategy and its plugins."""
    return [policy for owner in _owners(strategy) if (policy := _policy(owner)) is not None]


def _policy(owner: Any) -> Any:
    return getattr(getattr(owner, "memory", owner), "storage_policy", None)


def _kept_bytes(owner: Any) -> int | None:
    if hasattr(owner, "kept_bytes"):
        return None if owner.kept_bytes is None else int(owner.kept_bytes)
    counted = f"{type(owner).__module__}.".startswith(COUNTED) or _policy(owner) is not None
    return 0 if counted else None


def _owners(strategy: Any) -> list[Any]:
    return [strategy, *strategy.plugins]
