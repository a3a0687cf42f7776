"""Methods that learn past samples again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cl_ovq.options import COUNT, option
from cl_ovq.strategies.base import STRATEGIES, Context
from cl_ovq.strategies.buffer import PolicyOptions, ReplayOptions, buffer_samples, logits_shape

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

    from cl_ovq.training.rehearsal import Rehearsal


@dataclass
class DEROptions(ReplayOptions):
    """The loss of dark experience replay."""

    alpha: float = option(0.5, "loss weight of the distance to past samples' logits", minimum=0, adjustable=True)


@dataclass
class DERPPOptions(DEROptions):
    """The loss of DER++."""

    beta: float = option(0.5, "loss weight of past samples' labels", minimum=0, adjustable=True)


@dataclass
class MIROptions(ReplayOptions):
    """Among how many samples MIR chooses."""

    candidates: int = option(100, "candidate past samples per step", minimum=1, maximum=COUNT)


@STRATEGIES.enter(
    "replay", "experience replay from a buffer of past samples (Chaudhry et al. 2019)", options=ReplayOptions
)
def build_replay(options: ReplayOptions, context: Context) -> SupervisedTemplate:
    """Build experience replay."""
    from cl_ovq.training.replay import POLICIES, Replay

    samples = buffer_samples(options, context.stream)
    return context.naive(Replay(POLICIES[options.buffer_policy](samples), options.buffer_batch_size))


@STRATEGIES.enter(
    "der",
    "dark experience replay (Buzzega et al. 2020): past samples keep their logits",
    options=DEROptions,
    keeps_logits=True,
)
def build_der(options: DEROptions, context: Context) -> SupervisedTemplate:
    """Build dark experience replay."""
    return _dark(options, context, beta=0.0)


@STRATEGIES.enter(
    "derpp",
    "DER++ (Buzzega et al. 2020): DER plus replay of the labels",
    options=DERPPOptions,
    keeps_logits=True,
)
def build_derpp(options: DERPPOptions, context: Context) -> SupervisedTemplate:
    """Build DER++."""
    return _dark(options, context, beta=options.beta)


@STRATEGIES.enter(
    "er_ace",
    "replay in which new classes compete only among themselves (Caccia et al. 2022)",
    options=ReplayOptions,
    needs_classes=True,
)
def build_er_ace(options: ReplayOptions, context: Context) -> SupervisedTemplate:
    """Build ER-ACE."""
    from cl_ovq.training.rehearsal import AsymmetricReplay

    return _rehearsal(AsymmetricReplay, options, context)


@STRATEGIES.enter(
    "mir", "replay of the past samples that a step would harm most (Aljundi et al. 2019)", options=MIROptions
)
def build_mir(options: MIROptions, context: Context) -> SupervisedTemplate:
    """Build maximally interfered retrieval."""
    from cl_ovq.training.rehearsal import MaximallyInterfered

    return _rehearsal(MaximallyInterfered, options, context, candidates=options.candidates)


@STRATEGIES.enter(
    "gdumb",
    "a new model at every experience, trained only on the buffer (Prabhu et al. 2020)",
    options=PolicyOptions,
    needs_classes=True,
    no_first_experience="starts every experience from the first weights",
    no_merging="starts every experience from the first weights",
)
def build_gdumb(options: PolicyOptions, context: Context) -> SupervisedTemplate:
    """Build GDumb."""
    from cl_ovq.training.gdumb import GreedyDumb
    from cl_ovq.training.replay import POLICIES

    return context.naive(GreedyDumb(POLICIES[options.buffer_policy](buffer_samples(options, context.stream))))


def _dark(options: DEROptions, context: Context, *, beta: float) -> SupervisedTemplate:
    from cl_ovq.training.rehearsal import DarkExperienceReplay

    weights = {"alpha": options.alpha, "beta": beta}
    return _rehearsal(
        DarkExperienceReplay, options, context, logits=True, outputs=logits_shape(context.stream), **weights
    )


def _rehearsal(
    kind: type[Rehearsal], options: ReplayOptions, context: Context, *, logits: bool = False, **own: Any
) -> SupervisedTemplate:
    """Build a strategy that mixes past samples into its batches."""
    from cl_ovq.training.replay import POLICIES, Memory

    policy = POLICIES[options.buffer_policy](buffer_samples(options, context.stream, logits=logits))
    batch = context.common["train_mb_size"] if options.buffer_batch_size is None else options.buffer_batch_size
    memory = Memory(policy, context.stream.samples)
    return kind(memory=memory, memory_batch_size=batch, plugins=context.plugins, **own, **context.common)
