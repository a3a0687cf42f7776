"""Penalties that pull weights back to where they were, each weight by its importance: EWC, SI, MAS, and plain L2.

All are one quadratic function of the weights, `strength * sum_i importance_i (w_i - anchor_i)^2`, and differ in how
importance is found when an experience ends. Avalanche's plugins for them are not used; `docs/strategies.md` says why,
and `tests/cl_ovq/training/test_avalanche_faults.py` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from cl_ovq.training.criteria import has_target
from cl_ovq.training.passes import Tensors, evaluating, gradient, logits_of, trained
from cl_ovq.training.plugin import nbytes_of
from cl_ovq.training.replay import tasks_of
from streams import Samples, rows_of


class QuadraticPenalty(SupervisedPlugin):
    """Adds the penalty's gradient to that of the loss.

    The gradient is added after the backward pass, so that methods can still see that of the task alone.

    Args:
        strength: factor of the penalty.
    """

    STATE: tuple[str, ...] = ("importance", "anchor")  # of a checkpoint

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.importance: Tensors = {}
        self.anchor: Tensors = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes of importance and anchor."""
        return nbytes_of([self.importance, self.anchor])

    @torch.no_grad()
    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to loss and gradient."""
        if not self.importance:
            return
        total = torch.zeros((), device=strategy.device)
        for name, weight in trained(strategy.model).items():
            away = weight - self.anchor[name]
            pull = self.importance[name] * away
            total += (pull * away).sum()
            pull *= 2 * self.strength
            weight.grad = pull if weight.grad is None else weight.grad.add_(pull)
        strategy.loss = strategy.loss.detach() + self.strength * total

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Find what was important in the experience."""
        weights = {name: weight.detach().clone() for name, weight in trained(strategy.model).items()}
        self.consolidate(strategy, weights)

    def consolidate(self, strategy: Any, weights: Tensors) -> None:
        """Set importance and anchor, given the weights at the end of an experience."""
        raise NotImplementedError


class PullBack(QuadraticPenalty):
    """Every weight is equally important: the control of Hsu et al. (2018), `strength / 2 |w - w_last|^2`."""

    def __init__(self, strength: float) -> None:
        super().__init__(strength / 2)

    def consolidate(self, strategy: Any, weights: Tensors) -> None:
        """Anchor the weights."""
        self.anchor = weights
        self.importance = {name: torch.ones_like(weight) for name, weight in weights.items()}


class _FromSamples(QuadraticPenalty):
    """Importance from gradients of single samples, when an experience ends.

    Args:
        strength: factor of the penalty.
        samples: the stream's samples.
        count: samples of each experience that are looked at.
    """

    def __init__(self, strength: float, samples: Samples, count: int) -> None:
        super().__init__(strength)
        self.samples = samples
        self.count = count

    def gradients(self, strategy: Any, objective: Callable[[Tensor], Tensor]) -> Iterator[Tensors]:
        """Yield the gradient of a function of the outputs at each of some samples of the experience.

        The function is given the outputs where the sample has targets: logits `[n, C]` (of an image n is 1), or, of
        real targets, values `[n]`.
        """
        rows, tasks = rows_of(strategy.experience.dataset), tasks_of(strategy.experience.dataset)
        with evaluating(strategy.model):
            for index in torch.randperm(len(rows))[: self.count].split(1):
                x = self.samples.gather(rows[index]).to(strategy.device)
                outputs = logits_of(strategy.model, x, tasks[index].to(strategy.device))
                asked = has_target(self.samples.targets[rows[index]]).to(strategy.device)
                yield gradient(strategy.model, objective(outputs[asked]))

    def mean(self, strategy: Any, objective: Callable[[Tensor], Tensor], power: Callable[[Tensor], Tensor]) -> Tensors:
        """Return the mean over samples of a function of their gradients."""
        total: Tensors = {}
        taken = 0
        for found in self.gradients(strategy, objective):
            taken += 1
            for name, part in found.items():
                total[name] = total[name] + power(part) if name in total else power(part)
        return {name: part / taken for name, part in total.items()}


class ElasticWeights(_FromSamples):
    """Elastic weight consolidation: importance is the diagonal of the Fisher information.

    `strength / 2 sum_e F_e (w - w_e)^2` over past experiences e (Kirkpatrick et al. 2017, equation 3). That sum of
    quadratics is one quadratic, around the mean of the `w_e` weighted by the `F_e`, up to a constant, so it takes two
    numbers a weight however many experiences there were. Online (Schwarz et al. 2018): one anchor, the last weights,
    and importance `decay F_before + F`. The Fisher information takes targets from the model's own predictions
    (Kunstner et al. 2019), sample by sample. Of a sequence it is that of one of its targets, in the mean, as the loss
    is a mean over targets.

    Args:
        strength: lambda.
        samples: the stream's samples.
        count: samples of each experience that the Fisher information is estimated on.
        decay: gamma of online EWC; None for the original.
    """

    def __init__(self, strength: float, samples: Samples, count: int, decay: float | None = None) -> None:
        super().__init__(strength / 2, samples, count)
        self.decay = decay

    def consolidate(self, strategy: Any, weights: Tensors) -> None:
        """Add the Fisher information of the experience."""
        fisher = self.mean(strategy, _log_likelihood, torch.square)
        for name, new in fisher.items():
            old = self.importance.get(name, torch.zeros_like(new))
            if self.decay is not None:
                self.importance[name], self.anchor[name] = self.decay * old + new, weights[name]
                continue
            importance = old + new
            step = torch.where(importance > 0, new / importance, 1.0)
            before = self.anchor.get(name, weights[name])
            self.importance[name], self.anchor[name] = importance, before + step * (weights[name] - before)


def _log_likelihood(outputs: Tensor) -> Tensor:
    """Log-likelihood of targets drawn from the prediction itself, by the root of their number.

    Targets are drawn independently of each other, so that the square of the sum's gradient is the sum of squares in the
    mean: the root makes it the mean over targets. Squared error is the log-likelihood of a Gaussian of variance 1/2.

    Args:
        outputs: logits `[n, C]`, or values `[n]`.
    """
    if outputs.ndim == 1:
        drawn = outputs.detach() + torch.randn_like(outputs) / math.sqrt(2)
        total = -(outputs - drawn).square().sum()
    else:
        log_probabilities = outputs.log_softmax(1)
        target = torch.multinomial(log_probabilities.detach().exp(), 1)
        total = log_probabilities.gather(1, target).sum()
    return total / math.sqrt(len(outputs))


def _squared_length(outputs: Tensor) -> Tensor:
    """Mean over targets of the output's squared length; logits of other tasks' classes are minus infinity."""
    return outputs[outputs.isfinite()].square().sum() / len(outputs)


class MemoryAwareSynapses(_FromSamples):
    """MAS (Aljundi et al. 2018): importance is the mean magnitude of the gradient of the output's squared length.

    Importances of experiences add up. Samples are taken one by one: the gradients of a batch's mean cancel.
    """

    def consolidate(self, strategy: Any, weights: Tensors) -> None:
        """Add the importance of the experience."""
        found = self.mean(strategy, _squared_length, torch.abs)
        self.importance = {name: part + self.importance.get(name, 0) for name, part in found.items()}
        self.anchor = weights


class SynapticIntelligence(QuadraticPenalty):
    """SI (Zenke et al. 2017): importance is the part that a weight had in lowering the loss on its way.

    `omega = -sum_steps g dw` with g the gradient of the task's loss alone, and importance grows by
    `max(omega, 0) / (distance^2 + damping)` over each experience (equations 3 to 5).

    Args:
        strength: c.
        damping: xi.
    """

    STATE = ("path", "start")

    def __init__(self, strength: float, damping: float) -> None:
        super().__init__(strength)
        self.damping = damping
        self.path: Tensors = {}
        self.start: Tensors = {}
        self._step: dict[str, tuple[Tensor, Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note where the weights start."""
        self.start = {name: weight.detach().clone() for name, weight in trained(strategy.model).items()}
        self.path = {name: torch.zeros_like(weight) for name, weight in self.start.items()}

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep weights and the task's gradient, then add the penalty's."""
        self._step = {
            name: (weight.detach().clone(), weight.grad.clone())
            for name, weight in trained(strategy.model).items()
            if weight.grad is not None
        }
        super().after_backward(strategy, **kwargs)

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Credit each weight with what its step did to the loss."""
        for name, weight in trained(strategy.model).items():
            if name in self._step:
                before, grad = self._step[name]
                self.path[name] -= grad * (weight - before)
        self._step = {}

    def consolidate(self, strategy: Any, weights: Tensors) -> None:
        """Add the importance of the experience, whose path is not held any longer."""
        for name, end in weights.items():
            gained = self.path[name].clamp(min=0) / ((end - self.start[name]).square() + self.damping)
            self.importance[name] = self.importance.get(name, 0) + gained
        self.anchor, self.path, self.start = weights, {}, {}
