"""Continual-learning strategies by name. Each is Avalanche's; here it gets its options and our plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cl_ovq.config.schema import StrategyConfig
from cl_ovq.registry import Registry

if TYPE_CHECKING:
    # Avalanche takes seconds to import, and listing the strategies does not need it.
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.templates import SupervisedTemplate

StrategyBuilder = Callable[[StrategyConfig, "list[SupervisedPlugin]", dict[str, Any]], "SupervisedTemplate"]

STRATEGIES: Registry[StrategyBuilder] = Registry("strategy")

BUFFERED = ("replay",)  # strategies with a replay buffer of samples


@STRATEGIES.enter("naive", "fine-tuning on each experience in turn: the lower bound")
def _naive(config: StrategyConfig, plugins: list[SupervisedPlugin], common: dict[str, Any]) -> SupervisedTemplate:
    from avalanche.training.supervised import Naive

    return Naive(plugins=plugins, **common)


@STRATEGIES.enter("replay", "experience replay from a buffer of past samples (Chaudhry et al. 2019)")
def _replay(config: StrategyConfig, plugins: list[SupervisedPlugin], common: dict[str, Any]) -> SupervisedTemplate:
    from avalanche.training.supervised import Naive

    from cl_ovq.learning.replay import Replay

    return Naive(plugins=[Replay(config), *plugins], **common)


@STRATEGIES.enter("cumulative", "training on all data so far at every experience: no forgetting, growing cost")
def _cumulative(config: StrategyConfig, plugins: list[SupervisedPlugin], common: dict[str, Any]) -> SupervisedTemplate:
    from avalanche.training.supervised import Cumulative

    return Cumulative(plugins=plugins, **common)


@STRATEGIES.enter("joint", "training on the whole stream at once: the upper bound, not continual learning")
def _joint(config: StrategyConfig, plugins: list[SupervisedPlugin], common: dict[str, Any]) -> SupervisedTemplate:
    from avalanche.training.supervised import JointTraining

    return JointTraining(plugins=plugins, **common)


def replay_samples(strategy: SupervisedTemplate) -> int:
    """Return the number of past samples that a strategy holds."""
    buffers = [plugin.storage_policy.buffer for plugin in strategy.plugins if hasattr(plugin, "storage_policy")]
    return sum(len(buffer) for buffer in buffers)
