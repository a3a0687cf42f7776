"""Methods that learn prompts in a frozen vision transformer, in the encoder of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cl_ovq.encoders.prompts import CODAPromptOptions, DualPromptOptions, L2POptions, Prompts
from cl_ovq.strategies.base import STRATEGIES, Context

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate

# What the platform must know of a strategy of prompts.
PROMPTS: dict[str, Any] = {
    "needs_classes": True,
    "no_first_experience": "learns prompts in every experience",
}


@STRATEGIES.enter(
    "l2p",
    "learning to prompt (Wang et al. 2022): a pool of prompts in a frozen vision transformer",
    options=L2POptions,
    **PROMPTS,
)
def build_l2p(options: L2POptions, context: Context) -> SupervisedTemplate:
    """Build L2P."""
    return _with_prompts(context)


@STRATEGIES.enter(
    "dualprompt",
    "DualPrompt (Wang et al. 2022): a general prompt and one per experience, in a frozen vision transformer",
    options=DualPromptOptions,
    **PROMPTS,
)
def build_dualprompt(options: DualPromptOptions, context: Context) -> SupervisedTemplate:
    """Build DualPrompt."""
    return _with_prompts(context)


@STRATEGIES.enter(
    "coda_prompt",
    "CODA-Prompt (Smith et al. 2023): prompts as weighted sums of components, in a frozen vision transformer",
    options=CODAPromptOptions,
    **PROMPTS,
)
def build_coda_prompt(options: CODAPromptOptions, context: Context) -> SupervisedTemplate:
    """Build CODA-Prompt."""
    return _with_prompts(context)


def _with_prompts(context: Context) -> SupervisedTemplate:
    """Return fine-tuning of the prompts that the model was built with."""
    from cl_ovq.training.prompts import PromptTuning

    (prompts,) = (module for module in context.common["model"].modules() if isinstance(module, Prompts))
    return context.naive(PromptTuning(prompts))
