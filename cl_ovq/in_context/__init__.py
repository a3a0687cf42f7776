"""Learning without weights: what a stream teaches stays in the state of a sequence model."""

from cl_ovq.in_context.weight_files import write_weights
from cl_ovq.in_context.weights import (
    WEIGHTS,
    FromFileOptions,
    LearnerOptions,
    ReadOptions,
    build_learner,
    deciding,
    known_sha256,
)

__all__ = [
    "WEIGHTS",
    "FromFileOptions",
    "LearnerOptions",
    "ReadOptions",
    "build_learner",
    "deciding",
    "known_sha256",
    "write_weights",
]
