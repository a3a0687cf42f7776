"""What a strategy keeps beside the model: past samples, and what its method remembers of them."""

from __future__ import annotations

from typing import Any

from avalanche.training.storage_policy import ExemplarsBuffer

from cl_ovq.models.heads import RememberingHead
from cl_ovq.models.memory import MemoryHead
from streams import Samples


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


def method_bytes(strategy: Any) -> int:
    """Return the bytes that a method keeps of the past, samples apart: importances, a teacher, statistics of features.

    Dictionaries and memory heads are the model's and are not counted.
    """
    heads = [module.memory for module in strategy.model.modules() if isinstance(module, RememberingHead)]
    statistics = sum(head.nbytes for head in heads if not isinstance(head, MemoryHead))
    return statistics + sum(owner.kept_bytes for owner in _owners(strategy) if hasattr(owner, "kept_bytes"))


def policies(strategy: Any) -> list[ExemplarsBuffer]:
    """Return the policies of all memories of a strategy and its plugins."""
    owners = [getattr(owner, "memory", owner) for owner in _owners(strategy)]
    return [owner.storage_policy for owner in owners if hasattr(owner, "storage_policy")]


def _owners(strategy: Any) -> list[Any]:
    return [strategy, *strategy.plugins]
