"""Experience replay on Avalanche's buffers."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExemplarsBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)

from cl_ovq.config.schema import StrategyConfig

POLICIES: dict[str, type[ExemplarsBuffer]] = {
    "class_balanced": ClassBalancedBuffer,
    "experience_balanced": ExperienceBalancedBuffer,
    "reservoir": ReservoirSamplingBuffer,
}


class Replay(ReplayPlugin):
    """Avalanche's replay: every step adds past samples to the new ones (Chaudhry et al. 2019).

    Args:
        config: size, batch and policy of the buffer.
    """

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(
            mem_size=config.memory_size,
            batch_size_mem=config.memory_batch_size,
            storage_policy=POLICIES[config.memory_policy](config.memory_size),
        )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take samples of the experience into the buffer."""
        # What Avalanche's own plugin does by a call that it has deprecated, with a warning at every experience.
        self.storage_policy.post_adapt(strategy, strategy.experience)


def replay_buffers(strategy: Any) -> list[Any]:
    """Return the buffers of past samples that a strategy's plugins hold, as Avalanche data sets."""
    return [plugin.storage_policy.buffer for plugin in strategy.plugins if hasattr(plugin, "storage_policy")]
