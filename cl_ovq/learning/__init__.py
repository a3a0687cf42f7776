"""The plugins that tie strategies to dictionaries and data."""

from cl_ovq.learning.criteria import OBJECTIVES, Objective, quantity_of
from cl_ovq.seeding import derive_seed, seed_everything

__all__ = [
    "OBJECTIVES",
    "Objective",
    "derive_seed",
    "quantity_of",
    "seed_everything",
]
