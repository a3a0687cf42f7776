"""Optimizers by name, with their options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn, optim

from cl_ovq.options import option
from cl_ovq.registry import Part, Registry

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]  # or groups of them
OptimizerBuilder = Callable[[Any, Parameters], optim.Optimizer]

OPTIMIZERS: Registry[Part[OptimizerBuilder]] = Registry("optimizer", Part)


@dataclass
class OptimizerOptions:
    """What most optimizers have."""

    learning_rate: float = option(1e-3, "learning rate", exclusive_minimum=0, adjustable=True)
    weight_decay: float = option(0.0, "weight decay", minimum=0, adjustable=True)
    decay_norm_and_bias: bool = option(
        True, "apply weight decay to norm weights and biases (all one-dimensional parameters) too"
    )


@dataclass
class SGDOptions(OptimizerOptions):
    """The options of gradient descent."""

    momentum: float = option(0.0, "momentum; 0 for none", minimum=0, maximum=1, adjustable=True)


@OPTIMIZERS.enter("adamw", "Adam with decoupled weight decay (Loshchilov and Hutter 2019)", options=OptimizerOptions)
def build_adamw(options: OptimizerOptions, parameters: Parameters) -> optim.Optimizer:
    """Build AdamW."""
    return optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)


@OPTIMIZERS.enter("adam", "Adam (Kingma and Ba 2015)", options=OptimizerOptions)
def build_adam(options: OptimizerOptions, parameters: Parameters) -> optim.Optimizer:
    """Build Adam."""
    return optim.Adam(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)


@OPTIMIZERS.enter("sgd", "stochastic gradient descent, optionally with momentum", options=SGDOptions)
def build_sgd(options: SGDOptions, parameters: Parameters) -> optim.Optimizer:
    """Build gradient descent."""
    return optim.SGD(parameters, lr=options.learning_rate, weight_decay=options.weight_decay, momentum=options.momentum)
