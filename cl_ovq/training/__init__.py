"""The plugins that tie strategies to dictionaries and data."""

from cl_ovq.seeding import derive_seed, seed_everything
from cl_ovq.training.criteria import OBJECTIVES, Objective, quantity_of

__all__ = [
    "OBJECTIVES",
    "Objective",
    "derive_seed",
    "quantity_of",
    "seed_everything",
]
