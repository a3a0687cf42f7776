"""Settings under which every strategy takes its few steps in a second."""

import dataclasses

from cl_ovq.config import from_dict
from cl_ovq.config.parts import current
from cl_ovq.config.schema import StrategyConfig
from cl_ovq.strategies import STRATEGIES

ANYWHERE = STRATEGIES.having(lambda strategy: not strategy.has_prompts)  # strategies that need no encoder
QUICK = ("strategy.epochs=2", "strategy.batch_size=150")
SMALL = (
    "strategy.importance_samples=20",
    "strategy.candidates=30",
    "strategy.buffer_batch_size=15",
    "strategy.width=100",  # of random features, whose squares are inverted
)
LEARNER = ("learner.mixer=linear", "learner.steps=1", "learner.episodes=2", "learner.features=8", "learner.code=8")


def fitting(strategy, overrides):
    """Return the override that chooses a strategy, and those of others that it has a key for."""
    fields = (*dataclasses.fields(STRATEGIES[strategy].Options), *dataclasses.fields(StrategyConfig))
    known = {f"strategy.{field.name}" for field in fields}
    kept = (text for text in overrides if not text.startswith("strategy.") or text.partition("=")[0] in known)
    learner = LEARNER if "learner" in STRATEGIES[strategy].sections else ()
    return (f"strategy.name={strategy}", *kept, *learner)


def quick(strategy, *overrides):
    """Return the overrides that choose a strategy and make it quick, and others."""
    return (*fitting(strategy, (*QUICK, *SMALL)), *overrides)


def built(stream="split_digits", **sections):
    """Return a configuration of those of the given keys that the parts in it have."""
    return from_dict(current({"stream": {"name": stream}, **sections}))
