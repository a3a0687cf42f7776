"""What is checked of how gradients are taken: options that would do nothing are refused."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from cl_ovq.config import ExperimentConfig
from cl_ovq.encoders import encoder_of
from cl_ovq.encoders.tuning import is_tuned
from cl_ovq.errors import UserError, called, check_built, first_line
from cl_ovq.models import ModelContext
from cl_ovq.models.base import inputs_of
from cl_ovq.strategies import AUGMENTATIONS, SCHEDULES, STRATEGIES
from streams import STREAMS
from streams.stream import classless

if TYPE_CHECKING:
    from torch import nn

    from cl_ovq.strategies.augmentation import Transform
    from cl_ovq.strategies.schedules import Course
    from streams import Stream

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_training(config: ExperimentConfig) -> None:
    """Check what can be checked before there are data and a model.

    Raises:
        UserError: naming the key that would do nothing, or cannot be done.
    """
    build_schedule(config)
    alike = getattr(config.optimizer, "decay_norm_and_bias", True)
    if not alike and not config.optimizer.weight_decay:  # type: ignore[attr-defined]
        raise UserError("optimizer.decay_norm_and_bias: has no effect with optimizer.weight_decay=0: remove it")
    named = config.training.augmentation
    if named and STREAMS[config.stream.name].kind != "classes":
        raise UserError(
            f"training.augmentation: requires images, but '{config.stream.name}' has "
            f"{classless(STREAMS[config.stream.name].kind)}: remove it"
        )
    encoder = encoder_of(config.encoder)
    if named and encoder is not None and not is_tuned(encoder, config.strategy):
        raise UserError(
            "training.augmentation: cannot be combined with a frozen encoder, whose features are computed once from "
            "original "
            "images: remove it, or train the encoder (encoder.train_from, encoder.lora_rank)"
        )
    if twice := [name for number, name in enumerate(named) if name in named[:number]]:
        raise UserError(f"training.augmentation: {twice[0]} is listed twice")
    if STRATEGIES[config.strategy.name].is_head:
        _refuse(config, f"strategy.name={config.strategy.name} learns without gradients")
    elif config.memory is not None and config.model.train_encoder == "never":
        _refuse(config, "model.head=memory with model.train_encoder=never learns without gradients")


def check_precision(name: str, device: torch.device) -> None:
    """Check that a device computes with a precision, by a pass through two small layers and back.

    Raises:
        UserError: it does not.
    """
    if name == "fp32":
        return
    dtype = PRECISIONS[name]
    x, filters, weight = torch.ones(2, 1, 4, 4), torch.ones(3, 1, 2, 2), torch.ones(5, 27)
    x, filters, weight = (part.to(device).requires_grad_() for part in (x, filters, weight))
    try:
        with torch.autocast(device.type, dtype=dtype):
            found = functional.linear(functional.conv2d(x, filters).flatten(1), weight)
        found.float().sum().backward()
        reason = "" if found.dtype == dtype else f"PyTorch computes in {found.dtype} there"
    except RuntimeError as error:
        reason = first_line(error)
    if reason:
        raise UserError(f"training.precision: {name} does not work on {device}: {reason}: use fp32")


def check_compiler(device: torch.device) -> None:
    """Check that there is what `torch.compile` needs.

    Raises:
        UserError: there is no compiler.
    """
    standard = ("clang++" if sys.platform == "darwin" else "g++",) if device.type == "cpu" else ("gcc", "clang")
    variable, language = ("CXX", "C++") if device.type == "cpu" else ("CC", "C")
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else standard)):
        where = f"{variable} names '{named}', which is not there" if named else f"there is no {' or '.join(standard)}"
        raise UserError(f"training.compile: needs a {language} compiler, and {where}: install one, or remove it")


def check_learns(config: ExperimentConfig, model: nn.Module) -> None:
    """Check that a model learns by gradients if anything is asked for that concerns these.

    Raises:
        UserError: it does not.
    """
    from cl_ovq.models.heads import RememberingHead

    anchors = {head.anchor for head in model.modules() if isinstance(head, RememberingHead)}
    if not any(weight.requires_grad and weight not in anchors for weight in model.parameters()):
        _refuse(config, f"model.name={config.model.name} with model.head={config.model.head} learns without gradients")


def build_schedule(config: ExperimentConfig) -> Course:
    """Return how the learning rate goes.

    Raises:
        UserError: its options do not fit.
    """
    what = f"optimizer.schedule: '{config.optimizer.schedule}'"
    found = called(what, SCHEDULES[config.optimizer.schedule].build, config.optimizer)
    check_built(what, found, Callable, "a function of the step")  # type: ignore[arg-type]
    return found


def build_transforms(config: ExperimentConfig, stream: Stream) -> list[Transform]:
    """Return what the images of a stream are changed by in training.

    Raises:
        UserError: it has none, or such that cannot be changed so.
    """
    if not config.training.augmentation:
        return []
    if inputs_of(stream) != "images":
        raise UserError(f"training.augmentation: requires images, but '{stream.name}' has vectors: remove it")
    shape = ModelContext(stream).image_shape
    found = []
    for name in config.training.augmentation:
        what = f"training.augmentation: '{name}'"
        found.append(called(what, AUGMENTATIONS[name].build, config.training, shape))
        check_built(what, found[-1], Callable, "a function of images")  # type: ignore[arg-type]
    return found


def check_steps(config: ExperimentConfig, stream: Stream) -> None:
    """Check what depends on how long experiences are.

    Raises:
        UserError: an experience is too short for what is asked for.
    """
    sizes = [len(experience.dataset) for experience in stream.benchmark.streams["train"]]
    part = STRATEGIES[config.strategy.name]
    if part.at_once:
        sizes = [sum(sizes)]
    elif part.sees_all:
        sizes = list(accumulate(sizes))
    batches = [math.ceil(size / config.strategy.batch_size) for size in sizes]
    accumulation, warmup = config.training.accumulation, getattr(config.optimizer, "warmup_steps", 0)
    if accumulation > max(batches):
        raise UserError(
            f"training.accumulation: {accumulation} is too large: no experience has more than {max(batches)} batches"
        )
    steps = config.strategy.epochs * math.ceil(max(batches) / accumulation)
    if warmup >= steps:
        raise UserError(f"optimizer.warmup_steps: {warmup} is too large: no experience has more than {steps} steps")
    every, whole = config.evaluation.every_steps, config.strategy.epochs * sum(batches[: config.evaluation.stop_after])
    if every is not None and every > whole:
        raise UserError(f"evaluation.every_steps: {every} is too large: the run has {whole} steps")


def _refuse(config: ExperimentConfig, reason: str) -> None:
    """Refuse the first option that only concerns gradients, where there are none."""
    asked = {
        "optimizer.schedule": config.optimizer.schedule != "constant",
        "optimizer.decay_norm_and_bias": not getattr(config.optimizer, "decay_norm_and_bias", True),
        "training.augmentation": bool(config.training.augmentation),
        "training.precision": config.training.precision != "fp32",
        "training.compile": config.training.compile,
        "training.accumulation": config.training.accumulation > 1,
    }
    for key, given in asked.items():
        if given:
            raise UserError(f"{key}: has no effect: {reason}: remove it")
