"""What is checked of a configuration before anything runs: its schema, names, combinations, devices."""

from __future__ import annotations

from pathlib import Path

import torch

from cl_ovq.config import ExperimentConfig, check_schema
from cl_ovq.encoders import ENCODERS, encoder_of
from cl_ovq.encoders.tuning import check_tuning, is_tuned
from cl_ovq.errors import UserError
from cl_ovq.imports import check_imported
from cl_ovq.in_context import WEIGHTS
from cl_ovq.mixers import (
    MIXERS,
    DictionaryConfig,
    RateOptions,
    SharedOptions,
    layer_mixers,
    operator_options,
    scope_of,
)
from cl_ovq.models import MODELS, check_model, check_stack
from cl_ovq.paths import FIGURE_FORMATS
from cl_ovq.runs.training_checks import check_compiler, check_precision, check_training
from cl_ovq.strategies import STRATEGIES
from kernels.native import library
from kernels.native.support import unserved as unserved_by_native
from kernels.triton.support import unserved as unserved_by_triton
from streams import STREAMS
from streams.stream import classless

UNSERVED = {"native": unserved_by_native, "triton": unserved_by_triton}

# Tags that say what a run is; a sweep says which revision its trials are of.
OWN_TAGS = (
    "stream",
    "scenario",
    "quantity",
    "encoder",
    "model",
    "head",
    "mixer",
    "scope",
    "strategy",
    "seed",
    "device",
)


def check_config(config: ExperimentConfig) -> None:
    """Check a configuration: keys, types and ranges, and names and combinations that need more than its schema.

    The command line has checked the former when it read the configuration; one that was changed in Python has not been.

    Raises:
        UserError: naming the key and what is valid.
    """
    check_schema(config)
    check_imported(config.imports, Path())
    check_model(config.model)
    _check_encoder(config)
    name, strategy = config.strategy.name, STRATEGIES[config.strategy.name]
    if config.evaluation.every_steps is not None and strategy.at_once:
        raise UserError(f"evaluation.every_steps: {name} training has no experiences to evaluate within")
    if config.evaluation.rows and strategy.at_once:
        raise UserError(f"evaluation.rows: {name} training learns all experiences at once")
    kind = STREAMS[config.stream.name].kind
    if not strategy.learns(kind):
        raise UserError(
            f"strategy.name: '{name}' needs class labels, but '{config.stream.name}' has {classless(kind)}: "
            f"known: {', '.join(STRATEGIES.having(lambda other: other.learns(kind)))}"
        )
    if strategy.has_prompts and encoder_of(config.encoder) is None:
        raise UserError(
            f"encoder.name: strategy.name={name} puts prompts into an encoder, but there is none: use a vision "
            "transformer, encoder.name=timm"
        )
    if config.model.train_encoder == "first_experience" and strategy.no_first_experience is not None:
        raise UserError(
            f"model.train_encoder: first_experience cannot be combined with strategy.name={name}, which "
            f"{strategy.no_first_experience}: use always or never"
        )
    check_training(config)
    _check_dictionary(config)
    check_generalization(config)
    check_end(config, getattr(config.stream.options, "experiences", None))
    if config.memory is not None and strategy.no_memory_head is not None:
        raise UserError(
            f"model.head: a memory cannot be combined with strategy.name={name}, which {strategy.no_memory_head}: "
            "use model.head=linear"
        )
    if config.model.head != "linear" and strategy.is_head:
        raise UserError(
            f"model.head: '{config.model.head}' cannot be combined with strategy.name={name}, which is a head itself: "
            "use model.head=linear"
        )
    _check_learner(config)
    if config.figure_format != FIGURE_FORMATS[0] and not config.figures:
        raise UserError(f"figure_format: {config.figure_format} has no effect with figures=false")
    for tag in OWN_TAGS:
        if tag in config.tracking.tags:
            raise UserError(f"tracking.tags.{tag}: every run already has this tag: use another name")
    device = find_device(config.device)
    _check_implementation(config, device)
    check_precision(config.training.precision, device)
    if config.training.compile:
        check_compiler(device)


def _check_encoder(config: ExperimentConfig) -> None:
    """Check before features are computed, which may take hours, that the model reads some."""
    encoder = encoder_of(config.encoder)
    if encoder is None:
        return
    check_tuning(encoder, config.strategy)
    strategy = STRATEGIES[config.strategy.name]
    if strategy.has_prompts and config.model.train_encoder == "never":
        raise UserError(
            f"model.train_encoder: with never, prompts are not trained, but {config.strategy.name} trains them: use "
            "always"
        )
    if is_tuned(encoder, config.strategy) and (strategy.is_head or config.model.train_encoder == "never"):
        key = "train_from" if encoder.lora_rank is None else "lora_rank"
        why = "model.train_encoder=never does" if config.model.train_encoder == "never" else "this strategy does"
        raise UserError(f"encoder.{key}: {why} not train the encoder: remove it; the features are then computed once")
    if getattr(encoder, "lora_merge", False):
        _check_merging(config)
    stream, name = config.stream.name, config.model.name
    if STREAMS[stream].kind != "classes":
        reads = ENCODERS[config.encoder.name].reads
        has = classless(STREAMS[stream].kind)
        raise UserError(f"encoder.name: '{config.encoder.name}' reads {reads}, but '{stream}' has {has}")
    if not MODELS[name].takes("vectors"):
        raise UserError(
            f"model.name: '{name}' reads {MODELS[name].reads}, but an encoder outputs features: use model.name=pixels "
            f"(the unchanged features); known: {', '.join(MODELS.having(lambda model: model.takes('vectors')))}"
        )


def _check_merging(config: ExperimentConfig) -> None:
    """Check that LoRA's matrices can begin anew after each experience."""
    name, strategy = config.strategy.name, STRATEGIES[config.strategy.name]
    if strategy.no_merging is not None:
        raise UserError(
            f"encoder.lora_merge: cannot be combined with strategy.name={name}, which {strategy.no_merging}"
        )
    if config.model.train_encoder == "first_experience":
        raise UserError("encoder.lora_merge: has no effect with model.train_encoder=first_experience: remove it")


def check_end(config: ExperimentConfig, experiences: int | None) -> None:
    """Check that a stream of so many experiences does not end before the run is to; None where that is not known.

    Rows after `evaluation.stop_after` are none of the run's: what looks at the first experiences alone sets that.

    Raises:
        UserError: it does, or before a row that is asked for.
    """
    asked = {"stop_after": config.evaluation.stop_after or 0, "rows": max(config.evaluation.rows, default=0)}
    for key, last in asked.items():
        if experiences is not None and last > experiences:
            raise UserError(
                f"evaluation.{key}: {last} is too large: '{config.stream.name}' has {experiences} experiences"
            )


def _check_dictionary(config: ExperimentConfig) -> None:
    dictionary = config.dictionary
    if not isinstance(dictionary, SharedOptions):
        return
    if dictionary.refresh and not STRATEGIES[config.strategy.name].keeps_samples:
        raise UserError(
            f"dictionary.refresh: strategy.name={config.strategy.name} has no replay buffer to write from: "
            f"known: {', '.join(STRATEGIES.having(lambda other: other.keeps_samples))}"
        )
    if dictionary.sums and (dictionary.half_life is not None or isinstance(dictionary, RateOptions)):
        raise UserError("dictionary.sums: needs dictionary.learning_rate=adaptive and dictionary.half_life=null")


def _check_learner(config: ExperimentConfig) -> None:
    """Check before data is loaded, and weights are learned, that a learner in context can be built."""
    learner = config.learner
    if learner is None:
        return
    check_stack("learner", learner)
    mixers = layer_mixers(learner)
    if any(MIXERS[name].has_dictionary for name in mixers) and isinstance(config.dictionary, SharedOptions):
        raise UserError(
            "dictionary.scope: in_context carries dictionaries across experiences in its sequence's state: "
            "use dictionary.scope=sequence"
        )
    if learner.log_length_scaling and getattr(learner, "scalable_softmax", False):
        raise UserError("learner.log_length_scaling: learner.scalable_softmax already scales by length: remove one")
    if learner.log_length_scaling and not any(MIXERS[name].sharpens for name in mixers):
        raise UserError(
            f"learner.log_length_scaling: has no effect on {', '.join(dict.fromkeys(mixers))}: it applies to "
            f"{', '.join(MIXERS.having(lambda mixer: mixer.sharpens))}"
        )
    kind = STREAMS[config.stream.name].kind
    if not WEIGHTS[learner.weights].learns(kind):
        raise UserError(
            f"learner.weights: '{learner.weights}' are for streams of {WEIGHTS[learner.weights].kind}, but "
            f"'{config.stream.name}' has {kind}: known: {', '.join(WEIGHTS.having(lambda other: other.learns(kind)))}"
        )


def _check_implementation(config: ExperimentConfig, device: torch.device) -> None:
    """Check that Triton's kernels or native code serve the layers that ask for them, and compile the latter."""
    for section in ("model", "learner"):
        options = getattr(config, section)
        name = getattr(options, "implementation", "auto")
        if name not in UNSERVED or "ovq" not in layer_mixers(options):
            continue
        head = torch.empty(1, 1, options.heads, options.width // options.heads, device=device)
        dictionary = config.dictionary
        assert isinstance(dictionary, DictionaryConfig)  # which an OVQ layer opens
        reason = UNSERVED[name](head, head, head, operator_options(dictionary))
        if reason is not None:
            raise UserError(f"{section}.implementation: {name} does not support this run: {reason}: use auto")
        if name == "native":
            try:
                library.build()
            except ValueError as error:
                raise UserError(f"{section}.implementation: {error}: use auto") from None


def check_generalization(config: ExperimentConfig) -> None:
    """Check that what the trained model is to be evaluated on beside its stream can be.

    Raises:
        UserError: attention is to be sharpened at no other length; or other capacities are asked for, and the stream
            has no sequences, or no layer a dictionary that is learned anew in each.
    """
    if config.evaluation.log_length_scaling and not config.evaluation.lengths:
        raise UserError(
            "evaluation.log_length_scaling: has no effect without evaluation.lengths: set lengths, or remove it"
        )
    if config.evaluation.log_length_scaling and getattr(config.model, "scalable_softmax", False):
        raise UserError("evaluation.log_length_scaling: model.scalable_softmax already scales by length: remove one")
    if not config.evaluation.capacities:
        return
    stream, scope = config.stream.name, scope_of(config.dictionary)
    if STREAMS[stream].kind in ("classes", "vectors"):
        has = "images" if STREAMS[stream].kind == "classes" else "vectors"
        raise UserError(f"evaluation.capacities: '{stream}' has {has}, but only sequences support this: remove it")
    mixers = layer_mixers(config.model)
    if not any(MIXERS[mixer].has_dictionary for mixer in mixers):
        known = ", ".join(MIXERS.having(lambda mixer: mixer.has_dictionary))
        raise UserError(
            f"evaluation.capacities: no layer has a dictionary (mixers: {', '.join(dict.fromkeys(mixers))}): use "
            f"{known}"
        )
    if scope != "sequence":
        raise UserError(
            f"evaluation.capacities: with dictionary.scope={scope} the dictionary's capacity is fixed when "
            "it is written: use dictionary.scope=sequence"
        )


def find_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is a GPU where there is one.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: unknown device '{name}': known: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: unknown device '{name}': known: auto, cpu, cuda, cuda:N")
    if device.type == "cpu" and device.index:
        raise UserError(f"device: '{name}' does not exist: CPUs are not numbered: use cpu")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device: '{name}' does not exist: this machine has {torch.cuda.device_count()} GPUs")
    return device
