"""Continual-learning strategies by name: each method with its options. Avalanche is imported when one is built."""

# Imported in the order in which they are listed.
from cl_ovq.strategies import baselines, penalties, replay, projection, gradient_free, in_context, prompts, alignment  # noqa: F401, I001
from cl_ovq.strategies.alignment import SlowEncoderOptions
from cl_ovq.strategies.base import STRATEGIES, Context, Strategy, sees_all
from cl_ovq.strategies.gradient_free import HEAD, with_head
from cl_ovq.strategies.optimizers import OPTIMIZERS
from cl_ovq.strategies.schedules import SCHEDULES
from cl_ovq.strategies.augmentation import AUGMENTATIONS
from cl_ovq.strategies.buffer import BufferOptions, buffer_samples

__all__ = [
    "AUGMENTATIONS",
    "HEAD",
    "OPTIMIZERS",
    "SCHEDULES",
    "STRATEGIES",
    "BufferOptions",
    "Context",
    "SlowEncoderOptions",
    "Strategy",
    "buffer_samples",
    "sees_all",
    "with_head",
]
