"""Builds the model that a configuration names, for the stream that it will see."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from cl_ovq.encoders import EncoderNetwork, EncoderOptions, encoder_of
from cl_ovq.encoders.base import TEXTS, encoders_of
from cl_ovq.encoders.frozen import NamedEncoder, named_encoder
from cl_ovq.encoders.tuning import TunedModel, is_tuned, tuned, width_of
from cl_ovq.errors import UserError, called, first_line
from cl_ovq.mixers import MIXERS, AttentionOptions, OVQOptions, StackOptions, layer_mixers, seed_dictionaries
from cl_ovq.models.base import HEADS, MODELS, ModelContext, inputs_of
from cl_ovq.models.freezing import freeze_encoder, learns
from cl_ovq.models.sequence import SequenceModelOptions

if TYPE_CHECKING:
    from cl_ovq.config import ExperimentConfig, ModelConfig
    from streams import Stream


def check_model(model: ModelConfig) -> None:
    """Check what can be checked of a model before its data is loaded.

    Raises:
        UserError: options do not fit each other.
    """
    if isinstance(model, SequenceModelOptions) and model.tied and model.train_encoder != "always":
        raise UserError(
            "model.tied: a head tied to the embedding cannot be trained alone: use model.train_encoder=always"
        )
    if isinstance(model, StackOptions):
        check_stack("model", model)


def check_stack(section: str, stack: StackOptions) -> None:
    """Check what can be checked of a stack of layers before anything is built.

    Args:
        section: of the configuration that says what it is.
        stack: that section.

    Raises:
        UserError: options do not fit each other.
    """
    if stack.pattern == []:
        raise UserError(f"{section}.pattern: is empty: list the mixers of the layers, or use null for {section}.mixer")
    if not isinstance(stack, AttentionOptions):
        return
    if stack.width % stack.heads:
        raise UserError(f"{section}.heads: {stack.heads} heads do not divide {section}.width={stack.width}")
    if stack.width // stack.heads % 2 and any(MIXERS[name].rotary(stack) for name in layer_mixers(stack)):
        raise UserError(
            f"{section}.heads: rotary positions need heads of even size, and {stack.heads} heads of "
            f"{section}.width={stack.width} have {stack.width // stack.heads} features each"
        )
    if isinstance(stack, OVQOptions) and stack.heads % (stack.key_value_heads or stack.heads):
        raise UserError(
            f"{section}.key_value_heads: {stack.key_value_heads} does not divide {section}.heads={stack.heads}"
        )


def build_model(
    config: ExperimentConfig,
    stream: Stream,
    recipe: dict[str, Any] | None = None,
    check: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Return the configured model; in a task-incremental stream it takes task labels.

    Args:
        config: names the model.
        stream: to be learned.
        recipe: of an encoder that was trained and whose weights will be put into the model; None to read its own.
        check: is given a network that is made of parts from outside, before its head is put on.

    Raises:
        UserError: the configuration does not fit the stream, or the model the machine's memory.
    """
    name, part = config.model.name, MODELS[config.model.name]
    encoder = encoder_of(config.encoder)
    trunk = None
    if encoder is not None and is_tuned(encoder, config.strategy):
        experiences = len(stream.classes_per_experience)
        bare, made_of = _trunk(config.encoder.name, encoder, recipe)
        trunk = tuned(bare, encoder, config.strategy, experiences), made_of
    has = inputs_of(stream) if trunk is None else "vectors"
    if has == TEXTS:
        raise UserError(f"encoder.name: '{stream.name}' has texts, which need an encoder: {encoders_of(has)}")
    if not part.takes(has):
        reads = part.reads if isinstance(part.reads, str) else " and ".join(part.reads or ())
        raise UserError(
            f"model.name: '{name}' reads {reads}, but '{stream.name}' has {has}: "
            f"known: {', '.join(MODELS.having(lambda other: other.takes(has)))}"
        )
    what = f"model.name: '{name}'"
    try:
        if trunk is None:
            network = called(what, part.build, config.model, ModelContext(stream, config.dictionary))
        else:
            shape = ModelContext(stream).image_shape
            context = ModelContext(stream, config.dictionary, width_of(trunk[0], shape))
            network = TunedModel(trunk[0], called(what, part.build, config.model, context), trunk[1])
    except (MemoryError, RuntimeError) as error:  # the latter is PyTorch's
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise UserError(f"model: not enough memory for it: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.name: '{name}' is built as a {type(network).__name__}, but must be a torch.nn.Module")
    if check is not None and (part.foreign or any(MIXERS[mixer].foreign for mixer in layer_mixers(config.model))):
        check(network)
    seed_dictionaries(network, config.seed)
    if config.model.train_encoder == "never" or not learns(network):
        freeze_encoder(network)
    head = HEADS[config.model.head]
    if config.model.head != "linear" and not isinstance(getattr(network, "head", None), nn.Linear):
        raise UserError(
            f"model.head: '{config.model.head}' replaces a last layer `head` that is an nn.Linear, but "
            f"model.name={name} has none"
        )
    sections = (getattr(config, section) for section in head.sections)
    made: object = called(f"model.head: '{config.model.head}'", head.build, config.model, network, stream, *sections)
    if made is not None:  # and nowhere
        raise UserError(
            f"model.head: '{config.model.head}' returns a {type(made).__name__}, but must assign the head to the "
            "network that it receives: network.head = ..."
        )
    if stream.scenario != "task_incremental":
        return network
    from cl_ovq.models.heads import TaskMaskedModel  # Avalanche, which heads need, takes seconds to import

    return TaskMaskedModel(network, stream.classes_per_experience, stream.n_classes)


def _trunk(name: str, options: EncoderOptions, recipe: dict[str, Any] | None) -> tuple[EncoderNetwork, dict[str, Any]]:
    """Return an encoder that is to be trained, and what it is made of."""
    if recipe is not None:
        return cast("EncoderNetwork", NamedEncoder(name, options, recipe, options.sha256).bare()), recipe
    encoder = named_encoder(name, options, None)
    return cast("EncoderNetwork", encoder.network()), encoder.recipe
