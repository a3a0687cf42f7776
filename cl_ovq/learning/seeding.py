"""From the run's one seed to every source of randomness.

The seed for a purpose is the first four bytes (big endian) of the SHA-256 of `"<seed>/<purpose>"`, so that no two
purposes share a sequence of random numbers, and adding one changes no other. Purposes: `stream` (order of classes),
`model` (initial weights), `training` (order of batches, replay, dropout).
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, purpose: str) -> int:
    """Return the seed for one purpose, in 0 .. 2^32 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4])


def seed_everything(seed: int, purpose: str) -> None:
    """Seed the global generators of Python, NumPy and PyTorch for one purpose."""
    derived = derive_seed(seed, purpose)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)
