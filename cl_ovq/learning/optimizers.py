"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn, optim

from cl_ovq.config.schema import OptimizerConfig
from cl_ovq.registry import Registry

OPTIMIZERS: Registry[Callable[[Iterable[nn.Parameter], OptimizerConfig], optim.Optimizer]] = Registry("optimizer")


@OPTIMIZERS.enter("adamw", "Adam with decoupled weight decay (Loshchilov and Hutter 2019)")
def _adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> optim.Optimizer:
    return optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


@OPTIMIZERS.enter("adam", "Adam (Kingma and Ba 2015)")
def _adam(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> optim.Optimizer:
    return optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


@OPTIMIZERS.enter("sgd", "stochastic gradient descent, with momentum if asked for")
def _sgd(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> optim.Optimizer:
    return optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, momentum=config.momentum)
