"""What of a configuration can be checked only beyond its schema: names, combinations, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.learning import BUFFERED, OPTIMIZERS, STRATEGIES
from cl_ovq.learning.strategies import OF_CLASSES, PROTOTYPES
from cl_ovq.mixers import layer_mixers
from cl_ovq.models import check_model
from cl_ovq.registry import Registry
from cl_ovq.results import FILE_NAME
from streams import STREAMS


def check_config(config: ExperimentConfig) -> None:
    """Check names and combinations that need more than the configuration's own schema.

    Raises:
        UserError: naming the key and what is valid.
    """
    check_model(config.model)
    names: tuple[tuple[str, Registry[Any], str], ...] = (
        ("strategy.name", STRATEGIES, config.strategy.name),
        ("optimizer.name", OPTIMIZERS, config.optimizer.name),
    )
    for key, registry, name in names:
        try:
            registry[name]
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    if config.evaluation.every_steps is not None and config.strategy.name == "joint":
        raise UserError("evaluation.every_steps: joint training has no experiences to evaluate inside of")
    if STREAMS[config.stream.name].kind != "classes" and config.strategy.name in OF_CLASSES:
        raise UserError(
            f"strategy.name: '{config.strategy.name}' tells classes of images apart, and '{config.stream.name}' has "
            f"sequences: known: {', '.join(name for name in STRATEGIES if name not in OF_CLASSES)}"
        )
    _check_dictionary(config)
    check_beside(config)
    if config.model.head == "memory" and config.strategy.name in (*PROTOTYPES, "early_stopping"):
        raise UserError(
            f"model.head: a memory does not go with strategy.name={config.strategy.name}, which "
            + ("is a head of its own" if config.strategy.name in PROTOTYPES else "does not know its last epoch")
            + ": use model.head=linear"
        )
    find_device(config.device)
    if config.output_dir is not None and (Path(config.output_dir) / FILE_NAME).exists():
        raise UserError(f"output_dir: {config.output_dir} already holds the results of a run: name another directory")


def _check_dictionary(config: ExperimentConfig) -> None:
    dictionary = config.dictionary
    if dictionary.refresh and config.strategy.name not in BUFFERED:
        raise UserError(
            f"dictionary.refresh: strategy.name={config.strategy.name} has no replay buffer to write from: "
            f"known: {', '.join(BUFFERED)}"
        )
    if dictionary.sums and (dictionary.half_life is not None or dictionary.learning_rate != "adaptive"):
        raise UserError("dictionary.sums: needs dictionary.learning_rate=adaptive and dictionary.half_life=null")


def check_beside(config: ExperimentConfig) -> None:
    """Check that what the trained model is to be evaluated on beside its stream can be.

    Raises:
        UserError: attention is to be sharpened at no other length; or other capacities are asked for, and the stream
            has no sequences, or no layer a dictionary that is learned anew in each.
    """
    if config.evaluation.sharpen and not config.evaluation.lengths:
        raise UserError("evaluation.sharpen: changes nothing without evaluation.lengths: name lengths, or leave it out")
    if not config.evaluation.capacities:
        return
    stream, scope = config.stream.name, config.dictionary.scope
    if STREAMS[stream].kind == "classes":
        raise UserError(
            f"evaluation.capacities: '{stream}' has images, and only sequences are evaluated so: leave it empty"
        )
    if "ovq" not in (mixers := layer_mixers(config.model)):
        raise UserError(
            f"evaluation.capacities: no layer has a dictionary, but {', '.join(dict.fromkeys(mixers))}: use ovq"
        )
    if scope != "sequence":
        raise UserError(
            f"evaluation.capacities: with dictionary.scope={scope} a dictionary was written with the capacity that it "
            "has: use dictionary.scope=sequence"
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
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device: '{name}' is not there: this machine has {torch.cuda.device_count()} GPUs")
    return device
