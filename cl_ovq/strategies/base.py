"""The registry of continual-learning strategies, and what a strategy's builder is given.

`docs/strategies.md` says of each strategy what it is, where it comes from, and where it cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from cl_ovq.encoders.prompts import PromptOptions
from cl_ovq.registry import Part, Registry
from cl_ovq.strategies.buffer import BufferOptions

if TYPE_CHECKING:
    # Avalanche takes seconds to import, and listing the strategies does not need it.
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.templates import SupervisedTemplate

    from streams import Stream


@dataclass
class Context:
    """What a strategy is built from beside its options.

    Attributes:
        plugins: the platform's plugins, which every strategy is to be given.
        common: arguments of every Avalanche strategy: model, optimizer, criterion, batch sizes, epochs, device.
        stream: what will be learned.
        dictionary: the section `dictionary`; None where no mixer has one.
        seed: of the run.
    """

    plugins: list[SupervisedPlugin]
    common: dict[str, Any]
    stream: Stream
    dictionary: Any = None
    seed: int = 0

    def naive(self, *plugins: SupervisedPlugin) -> SupervisedTemplate:
        """Return fine-tuning with the plugins of a method, which run before those of the platform."""
        from cl_ovq.training.baselines import Naive

        return Naive(plugins=[*plugins, *self.plugins], **self.common)


# Given its options, what else it is built from, and the sections that it opens.
StrategyBuilder = Callable[..., "SupervisedTemplate"]


@dataclass(frozen=True, kw_only=True)
class Strategy(Part[StrategyBuilder]):
    """A strategy of the registry.

    Attributes:
        needs_classes: whether it needs class labels of whole samples, which sequences do not have.
        tells_vectors: whether it learns vectors that are to be told of samples, though it needs class labels elsewhere.
        needs_validation: whether it learns with the help of validation data.
        is_head: whether it is a classifier itself, in the place of the model's head.
        aligns_head: whether it trains the model's head on features by themselves.
        sees_all: whether it learns from all data so far, so that others are measured against it.
        at_once: whether it is trained once, on the whole stream.
        keeps_logits: whether past samples keep the logits that the model gave them.
        no_first_experience: why there is no encoder of the first experience to keep; None where there is.
        no_memory_head: why a memory head cannot be written; None where it can.
        no_merging: why LoRA's matrices cannot begin anew after an experience; None where they can.
    """

    needs_classes: bool = False
    tells_vectors: bool = False
    needs_validation: bool = False
    is_head: bool = False
    aligns_head: bool = False
    sees_all: bool = False
    at_once: bool = False
    keeps_logits: bool = False
    no_first_experience: str | None = None
    no_memory_head: str | None = None
    no_merging: str | None = None

    def __post_init__(self) -> None:
        """Let a class of plugins be a builder: of fine-tuning with the plugin that its options make."""
        super().__post_init__()
        if isinstance(self.build, type):
            from cl_ovq.training.plugin import Plugin

            if not issubclass(self.build, Plugin):
                raise TypeError(
                    f"'{self.build.__qualname__}' is registered as a strategy, but is not a cl_ovq.avalanche.Plugin: "
                    "inherit "
                    "from it, or register a function that returns a strategy"
                )
            object.__setattr__(self, "build", _with_plugin(self.build))

    def learns(self, kind: str) -> bool:
        """Return whether it learns streams of a kind, see `streams.stream.KINDS`."""
        return kind == "classes" or not self.needs_classes or (kind == "vectors" and self.tells_vectors)

    @property
    def keeps_samples(self) -> bool:
        """Whether it has a replay buffer."""
        return issubclass(self.Options, BufferOptions)

    @property
    def has_prompts(self) -> bool:
        """Whether it puts prompts into the encoder, which must be there."""
        return issubclass(self.Options, PromptOptions)


def _with_plugin(plugin: Callable[[Any], SupervisedPlugin]) -> StrategyBuilder:
    @wraps(plugin, updated=())
    def build(options: Any, context: Context) -> SupervisedTemplate:
        return context.naive(plugin(options))

    return build


STRATEGIES: Registry[Strategy] = Registry("strategy", Strategy, plural="strategies")


def sees_all(config: Mapping[str, Any]) -> bool:
    """Return whether a stored configuration's strategy learned from all data so far: others are measured against it."""
    name = config["strategy"]["name"]
    return name in STRATEGIES and STRATEGIES[name].sees_all
