"""Continual-learning strategies by name. Each is an Avalanche strategy; here it gets its options and our plugins.

`docs/strategies.md` says of each what it is, where it comes from, and where it cannot work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from cl_ovq.config.schema import StrategyConfig
from cl_ovq.registry import Registry

if TYPE_CHECKING:
    # Avalanche takes seconds to import, and listing the strategies does not need it.
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.templates import SupervisedTemplate

    from cl_ovq.learning.rehearsal import Rehearsal
    from streams import Stream

Plugins = list["SupervisedPlugin"]
Common = dict[str, Any]
StrategyBuilder = Callable[[StrategyConfig, Plugins, Common, "Stream"], "SupervisedTemplate"]

STRATEGIES: Registry[StrategyBuilder] = Registry("strategy")

# Strategies that keep past samples.
BUFFERED = ("replay", "gem", "agem", "der", "derpp", "er_ace", "mir", "gdumb")

# The penalty's weight where none is configured.
STRENGTH = {"ewc": 100.0, "online_ewc": 100.0, "si": 1.0, "mas": 1.0, "l2": 0.01, "lwf": 1.0}

# Strategies whose head is the method itself, in the place of the model's linear one.
PROTOTYPES = ("slda", "ncm")

# Strategies that tell classes of samples apart, which sequences do not have.
OF_CLASSES = ("er_ace", "gdumb", *PROTOTYPES)


@STRATEGIES.enter("naive", "fine-tuning on each experience in turn: the lower bound")
def _naive(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from avalanche.training.supervised import Naive

    return Naive(plugins=plugins, **common)


@STRATEGIES.enter("cumulative", "training on all data so far at every experience: no forgetting, growing cost")
def _cumulative(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from avalanche.training.supervised import Cumulative

    return Cumulative(plugins=plugins, **common)


@STRATEGIES.enter("joint", "training on the whole stream at once: the upper bound, not continual learning")
def _joint(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from avalanche.training.supervised import JointTraining

    return JointTraining(plugins=plugins, **common)


@STRATEGIES.enter("early_stopping", "control: fine-tuning that stops each experience early; forgets as naive does")
def _early_stopping(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.stopping import EarlyStopping

    return _naive(config, [EarlyStopping(stream, config.patience), *plugins], common, stream)


@STRATEGIES.enter("l2", "control: weights are pulled to those of the last experience, all alike (Hsu et al. 2018)")
def _l2(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.penalties import PullBack

    return _naive(config, [PullBack(_strength(config)), *plugins], common, stream)


@STRATEGIES.enter("ewc", "elastic weight consolidation (Kirkpatrick et al. 2017); about naive if class-incremental")
def _ewc(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.penalties import ElasticWeights

    penalty = ElasticWeights(_strength(config), stream.samples, config.importance_samples)
    return _naive(config, [penalty, *plugins], common, stream)


@STRATEGIES.enter("online_ewc", "EWC with one decaying penalty (Schwarz et al. 2018); about naive if class-incremental")
def _online_ewc(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.penalties import ElasticWeights

    penalty = ElasticWeights(
        _strength(config), stream.samples, config.importance_samples, decay=config.importance_decay
    )
    return _naive(config, [penalty, *plugins], common, stream)


@STRATEGIES.enter("si", "synaptic intelligence (Zenke et al. 2017); about naive if class-incremental")
def _si(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.penalties import SynapticIntelligence

    return _naive(config, [SynapticIntelligence(_strength(config), config.damping), *plugins], common, stream)


@STRATEGIES.enter("mas", "memory aware synapses (Aljundi et al. 2018); about naive if class-incremental")
def _mas(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.penalties import MemoryAwareSynapses

    penalty = MemoryAwareSynapses(_strength(config), stream.samples, config.importance_samples)
    return _naive(config, [penalty, *plugins], common, stream)


@STRATEGIES.enter("lwf", "learning without forgetting (Li and Hoiem 2016); weak if class-incremental")
def _lwf(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.distillation import LearningWithoutForgetting

    teacher = LearningWithoutForgetting(_strength(config), config.temperature, stream)
    return _naive(config, [teacher, *plugins], common, stream)


@STRATEGIES.enter("replay", "experience replay from a buffer of past samples (Chaudhry et al. 2019)")
def _replay(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.replay import Replay

    return _naive(config, [Replay(config, stream), *plugins], common, stream)


@STRATEGIES.enter("gem", "gradient episodic memory (Lopez-Paz and Ranzato 2017): one constraint per past experience")
def _gem(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.projection import EpisodicGradients
    from cl_ovq.learning.replay import memory_samples

    projection = EpisodicGradients(memory_samples(config, stream), stream.samples, config.margin)
    return _naive(config, [projection, *plugins], common, stream)


@STRATEGIES.enter("agem", "averaged GEM (Chaudhry et al. 2019): one constraint for all; weak if class-incremental")
def _agem(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.projection import AverageGradients
    from cl_ovq.learning.replay import memory_samples

    projection = AverageGradients(memory_samples(config, stream), stream.samples, _memory_batch(config))
    return _naive(config, [projection, *plugins], common, stream)


@STRATEGIES.enter("der", "dark experience replay (Buzzega et al. 2020): past samples keep their logits")
def _der(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    return _dark(config, plugins, common, stream, beta=0.0)


@STRATEGIES.enter("derpp", "DER++ (Buzzega et al. 2020): past samples keep their logits and are learned again")
def _derpp(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    return _dark(config, plugins, common, stream, beta=config.beta)


@STRATEGIES.enter("er_ace", "replay where new classes do not push old ones down (Caccia et al. 2022)")
def _er_ace(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.rehearsal import AsymmetricReplay

    return _rehearsal(AsymmetricReplay, config, plugins, common, stream)


@STRATEGIES.enter("mir", "replay of the samples that a step would harm most (Aljundi et al. 2019)")
def _mir(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.rehearsal import MaximallyInterfered

    return _rehearsal(MaximallyInterfered, config, plugins, common, stream, candidates=config.candidates)


@STRATEGIES.enter("gdumb", "a new model at every experience, trained on the memory alone (Prabhu et al. 2020)")
def _gdumb(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.learning.replay import POLICIES, memory_samples
    from cl_ovq.learning.scratch import GreedyDumb

    policy = POLICIES[config.memory_policy](memory_samples(config, stream))
    return _naive(config, [GreedyDumb(policy), *plugins], common, stream)


@STRATEGIES.enter("slda", "streaming LDA on the model's features (Hayes and Kanan 2020); the encoder is not trained")
def _slda(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.models.discriminant import StreamingDiscriminant

    def head(features: int) -> nn.Module:
        return StreamingDiscriminant(features=features, classes=stream.n_classes, shrinkage=config.shrinkage)

    return _prototypes(head, config, plugins, common, stream)


@STRATEGIES.enter("ncm", "nearest class mean on the model's features (Mensink et al. 2013); the encoder is not trained")
def _ncm(config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream) -> SupervisedTemplate:
    from cl_ovq.models.discriminant import NearestMean

    def head(features: int) -> nn.Module:
        return NearestMean(features=features, classes=stream.n_classes)

    return _prototypes(head, config, plugins, common, stream)


def _strength(config: StrategyConfig) -> float:
    return STRENGTH[config.name] if config.strength is None else config.strength


def _memory_batch(config: StrategyConfig) -> int:
    return config.batch_size if config.memory_batch_size is None else config.memory_batch_size


def _dark(
    config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream, *, beta: float
) -> SupervisedTemplate:
    from cl_ovq.learning.rehearsal import DarkExperienceReplay

    outputs = stream.samples.targets.shape[1:] + (() if stream.kind == "values" else (stream.n_classes,))
    options = {"outputs": tuple(outputs), "alpha": config.alpha, "beta": beta}
    extra = 4 * math.prod(outputs)  # bytes
    return _rehearsal(DarkExperienceReplay, config, plugins, common, stream, extra=extra, **options)


def _rehearsal(
    kind: type[Rehearsal],
    config: StrategyConfig,
    plugins: Plugins,
    common: Common,
    stream: Stream,
    *,
    extra: int = 0,
    **options: Any,
) -> SupervisedTemplate:
    """Build a strategy that mixes past samples into its batches; `extra` bytes are kept with each of them."""
    from cl_ovq.learning.replay import POLICIES, Memory, memory_samples

    policy = POLICIES[config.memory_policy](memory_samples(config, stream, extra=extra))
    memory = Memory(policy, stream.samples)
    return kind(memory=memory, memory_batch_size=_memory_batch(config), plugins=plugins, **options, **common)


def _prototypes(
    head: Callable[[int], nn.Module], config: StrategyConfig, plugins: Plugins, common: Common, stream: Stream
) -> SupervisedTemplate:
    """Put a head that learns without gradients in the place of the model's linear one, and write it as a memory."""
    from cl_ovq.learning.memory import MemoryWrites
    from cl_ovq.models.heads import RememberingHead

    network: Any = getattr(common["model"], "model", common["model"])  # a task-masked model wraps its network
    size = network.head.in_features
    network.requires_grad_(False)
    network.head = RememberingHead(head(size), None)
    return _naive(config, [*plugins, MemoryWrites(stream, calibrate=False)], common, stream)
