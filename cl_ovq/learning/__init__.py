"""Strategies, optimizers, and the plugins that tie them to dictionaries and data."""

from cl_ovq.learning.criteria import OBJECTIVES, Objective, quantity_of
from cl_ovq.learning.optimizers import OPTIMIZERS
from cl_ovq.learning.seeding import derive_seed, seed_everything
from cl_ovq.learning.strategies import BUFFERED, STRATEGIES

__all__ = [
    "BUFFERED",
    "OBJECTIVES",
    "OPTIMIZERS",
    "STRATEGIES",
    "Objective",
    "derive_seed",
    "quantity_of",
    "seed_everything",
]
