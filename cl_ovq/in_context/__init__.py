"""Learning without weights: what a stream teaches stays in the state of a sequence model."""

from cl_ovq.in_context.weights import WEIGHTS, LearnerOptions, build_learner, deciding, write_weights

__all__ = ["WEIGHTS", "LearnerOptions", "build_learner", "deciding", "write_weights"]
