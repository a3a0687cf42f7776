"""From a run's one seed to every source of randomness.

Purposes: `stream` (order of classes), `model` (initial weights), `training` (order of batches, replay, dropout),
`augmentation` (of training images), `lora/<experience>` (matrices that begin anew), and `dictionary/<layer>` (tokens
that seed slots, `mixers.ovq.seed_dictionaries`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, purpose: str) -> int:
    """Return the seed for one purpose, in 0 .. 2^32 - 1.

    It is the first four bytes (big endian) of the SHA-256 of `"<seed>/<purpose>"`, so that no two purposes share a
    sequence of random numbers, and adding one changes no other.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4])


def seed_everything(seed: int, purpose: str) -> None:
    """Seed the global generators of Python, NumPy and PyTorch for one purpose."""
    derived = derive_seed(seed, purpose)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)


def random_state() -> dict[str, Any]:
    """Return the state of the global generators, as plain data and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put a state of the global generators back."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Leave the global generators as they were, whatever is drawn inside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
