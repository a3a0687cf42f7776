"""Learning without weights: what a stream teaches stays in the state of a sequence model."""

from cl_ovq.in_context.weights import (
    WEIGHTS,
    LearnerOptions,
    ReadOptions,
    build_learner,
    deciding,
    known_sha256,
    write_weights,
)

__all__ = [
    "WEIGHTS",
    "LearnerOptions",
    "ReadOptions",
    "build_learner",
    "deciding",
    "known_sha256",
    "write_weights",
]
