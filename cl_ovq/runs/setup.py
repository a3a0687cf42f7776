"""What a run is made of: its name, its stream, and the strategy that trains its model."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.config.protocols import lacking_validation
from cl_ovq.encoders import encoder_of
from cl_ovq.encoders.tuning import is_tuned
from cl_ovq.errors import UserError, called, check_built, is_foreign, own_code
from cl_ovq.mixers import MIXERS, SharedOptions, layer_mixers, scope_of
from cl_ovq.models.freezing import slow_encoder
from cl_ovq.models.normalisation import decay_groups
from cl_ovq.runs.checking import check_end, find_device
from cl_ovq.runs.training_checks import build_schedule, build_transforms, check_learns, check_steps
from cl_ovq.strategies import OPTIMIZERS, STRATEGIES, BufferOptions, Context, SlowEncoderOptions, buffer_samples
from cl_ovq.training import OBJECTIVES, derive_seed
from streams import STREAMS, StreamDataError, build_stream

if TYPE_CHECKING:
    # These import Avalanche, which `cl-ovq show` does not need.
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

    from cl_ovq.training.steps import Steps
    from streams import Stream


def describe(config: ExperimentConfig) -> str:
    """Return the name of a run: model, strategy and seed."""
    named: str | None = to_dict(config)["tracking"]["run_name"]
    if named is not None:
        return named
    scope, mixers = scope_of(config.dictionary), dict.fromkeys(layer_mixers(config.model))
    parts = (f"{name}-{scope}" if MIXERS[name].has_dictionary else name for name in mixers)
    model = "+".join(parts) or getattr(config.model, "source", "").rpartition(".")[2] or config.model.name
    if (encoder := encoder_of(config.encoder)) is not None:
        network = re.split(r"[/:]", getattr(encoder, "model", None) or config.encoder.name)[-1]
        model = network if config.model.name == "pixels" else f"{network}+{model}"
    if config.memory is not None:
        model += "-memory"
    if config.learner is not None:
        model += "-" + "+".join(dict.fromkeys(layer_mixers(config.learner)))
    return f"{model} {config.strategy.name} seed {config.seed}"


def take_threads(config: ExperimentConfig) -> None:
    """Let PyTorch compute in as many threads as a configuration says, if it does."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def load_stream(config: ExperimentConfig, *, learned: bool = True) -> Stream:
    """Build the configured stream: of features, where a frozen encoder makes some of its images or texts.

    Args:
        config: names the stream, and what it is for.
        learned: whether it is to be learned; not where a trained model is judged on it.

    Raises:
        UserError: its data is missing or damaged, or its options do not fit it, or its encoder cannot be had.
    """
    quiet()  # before Avalanche is imported
    from cl_ovq.evaluation.length_generalization import sequences_of

    name, build = config.stream.name, STREAMS[config.stream.name].build
    with own_code(f"stream.name: '{name}'", build) if is_foreign(build) else nullcontext():
        try:
            stream = build_stream(name, config.stream.options, seed=derive_seed(config.seed, "stream"))
        except StreamDataError as error:
            raise UserError(f"stream: {error}") from error
    for length in config.evaluation.lengths:
        sequences_of(stream, length, 1, config.evaluation.split)
    if learned and "validation" not in stream.benchmark.streams:
        option = lacking_validation(config.stream.options)
        empty = f"needs a validation stream: {f'{option} is 0' if option else f'{stream.name} has none'}"
        if config.memory is not None and config.memory.calibrate:
            raise UserError(f"memory.calibrate: {empty}")
        if STRATEGIES[config.strategy.name].needs_validation:
            raise UserError(f"strategy.name: {config.strategy.name} {empty}")
    if config.evaluation.split not in stream.benchmark.streams:
        hint = ""
        if config.evaluation.split == "validation":
            hint = " (sweeps and studies select on validation data: docs/avalanche.md says how a stream gets it)"
        raise UserError(
            f"evaluation.split: '{stream.name}' has no stream '{config.evaluation.split}' with these options: "
            f"known: {', '.join(stream.benchmark.streams)}{hint}"
        )
    if learned:
        check_end(config, len(stream.classes_per_experience))
        check_steps(config, stream)
    if (encoder := encoder_of(config.encoder)) is not None:
        from cl_ovq.encoders.stream import with_encoder

        trained = is_tuned(encoder, config.strategy)
        stream = with_encoder(stream, config.encoder.name, encoder, find_device(config.device), trained=trained)
    build_transforms(config, stream)
    if isinstance(config.strategy, BufferOptions):
        buffer_samples(config.strategy, stream, logits=STRATEGIES[config.strategy.name].keeps_logits)
    return stream


def build_strategy(
    config: ExperimentConfig,
    stream: Stream,
    model: torch.nn.Module,
    device: torch.device,
    *,
    evaluator: EvaluationPlugin | None = None,
    plugins: Sequence[Any] = (),
) -> SupervisedTemplate:
    """Return the configured Avalanche strategy, with the plugins that this platform adds to it.

    Args:
        config: the configuration.
        stream: its stream.
        model: its model.
        device: where to compute.
        evaluator: computes metrics, see `evaluation.logger.evaluator`; none if None.
        plugins: further ones. They see a loss before it is checked for divergence.
    """
    from avalanche.training.templates import BaseSGDTemplate

    from cl_ovq.evaluation.logger import evaluator as evaluator_of
    from cl_ovq.models.heads import unwrap
    from cl_ovq.training.augmentation import Augmentation
    from cl_ovq.training.auxiliary import AuxiliaryLoss
    from cl_ovq.training.batches import BatchedData
    from cl_ovq.training.compiled import compile_passes
    from cl_ovq.training.dictionary import DictionaryScope
    from cl_ovq.training.divergence import DivergenceGuard
    from cl_ovq.training.drift import DictionaryRefresh, FirstExperienceEncoder
    from cl_ovq.training.lora import LoRAMerging
    from cl_ovq.training.memory import MemoryWrites
    from cl_ovq.training.schedule import LearningRate

    ours: list[Any] = [
        BatchedData(stream.samples, config.training.accumulation),
        DictionaryScope(scope_of(config.dictionary)),
        AuxiliaryLoss(),
    ]
    if config.memory is not None:
        ours.append(MemoryWrites(stream, calibrate=config.memory.calibrate))
    if config.model.train_encoder == "first_experience":
        ours.append(FirstExperienceEncoder())
    if isinstance(config.dictionary, SharedOptions) and config.dictionary.refresh:
        ours.append(DictionaryRefresh(stream))
    alike = getattr(config.optimizer, "decay_norm_and_bias", True)
    parameters: Any = model.parameters() if alike else decay_groups(model)
    if isinstance(config.strategy, SlowEncoderOptions):
        groups = [{"params": list(parameters)}] if alike else parameters
        parameters = slow_encoder(groups, unwrap(model), config.strategy.encoder_rate)
    what = f"optimizer.name: '{config.optimizer.name}'"
    optimizer = called(what, OPTIMIZERS[config.optimizer.name].build, config.optimizer, parameters)
    check_built(what, optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    for group in optimizer.param_groups:
        group["lr"] *= group.get("share", 1)
    check_learns(config, model)
    if transforms := build_transforms(config, stream):
        ours.append(Augmentation(transforms, derive_seed(config.seed, "augmentation")))
    if config.optimizer.schedule != "constant":
        ours.append(LearningRate(build_schedule(config), optimizer))
    if (steps := _steps(config, device)) is not None:
        ours.append(steps)
    if getattr(config.encoder, "lora_merge", False):
        ours.append(LoRAMerging(config.seed))
    ours += [*plugins, DivergenceGuard()]
    common = {
        "model": model,
        "optimizer": optimizer,
        "criterion": OBJECTIVES[stream.kind].criterion(),
        "train_mb_size": config.strategy.batch_size,
        "train_epochs": config.strategy.epochs,
        "eval_mb_size": config.evaluation.batch_size,
        "device": device,
        "evaluator": evaluator_of() if evaluator is None else evaluator,
    }
    part = STRATEGIES[config.strategy.name]
    context = Context(ours, common, stream, config.dictionary, config.seed)
    sections = (getattr(config, section) for section in part.sections)
    what = f"strategy.name: '{config.strategy.name}'"
    strategy = called(what, part.build, config.strategy, context, *sections)
    check_built(what, strategy, BaseSGDTemplate, "a strategy of Avalanche's: return context.naive(...), for example")
    if config.training.compile:
        compile_passes(strategy)
    if steps is not None:
        steps.attach(strategy)
    return strategy


def _steps(config: ExperimentConfig, device: torch.device) -> Steps | None:
    """Return what makes the steps of the optimizer; None where Avalanche's own loop does."""
    from cl_ovq.training.steps import ScaledSteps, Steps

    if config.training.precision == "fp16":
        return ScaledSteps(device)
    if config.training.precision == "bf16":
        return Steps(torch.bfloat16)
    return Steps() if config.training.accumulation > 1 else None


def quiet() -> None:
    """Silence what the libraries say about themselves; none of it concerns the run."""
    warnings.filterwarnings("ignore", message="No loggers specified")
    warnings.filterwarnings("ignore", message="no QP solver found")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
