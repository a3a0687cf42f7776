"""Keys that have another name now: refused in what people write, translated in what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "evaluation.stream": "evaluation.split",
    "evaluation.sharpen": "evaluation.log_length_scaling",
    "dictionary.seeds": "dictionary.slot_init",
    "strategy.memory_size": "strategy.buffer_size",
    "strategy.memory_bytes": "strategy.buffer_bytes",
    "strategy.memory_batch_size": "strategy.buffer_batch_size",
    "strategy.memory_policy": "strategy.buffer_policy",
    "model.codes": "model.codebook_size",
    "model.longest_step": "model.dt_max",
}


def renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with the keys of today."""
    new = dict(tree)
    for old, now in RENAMED.items():
        section, key = old.split(".")
        given = new.get(section)
        if isinstance(given, Mapping) and key in given:
            name = now.removeprefix(f"{section}.")
            new[section] = {(name if other == key else other): value for other, value in given.items()}
    return new
