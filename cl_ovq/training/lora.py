"""LoRA whose matrices are merged into the weights after each experience, and begin anew."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from cl_ovq.encoders.tuning import merge_lora
from cl_ovq.seeding import derive_seed, unchanged_randomness


class LoRAMerging(SupervisedPlugin):
    """Merges LoRA's matrices into the weights after each experience; what the model computes stays, up to rounding.

    New matrices are drawn for the next one, and the optimizer knows nothing of the old ones.

    Args:
        seed: of the run.
    """

    STATE: tuple[str, ...] = ()  # of a checkpoint

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Merge."""
        with unchanged_randomness():
            torch.manual_seed(derive_seed(self.seed, f"lora/{strategy.clock.train_exp_counter}"))
            for weight in merge_lora(strategy.model):
                strategy.optimizer.state.pop(weight, None)
