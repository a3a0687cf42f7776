"""Strategies whose steps mix past samples into the batch, and treat them in a way of their own."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.nn import functional

from cl_ovq.training.criteria import has_target, sample_losses
from cl_ovq.training.passes import append_rows, evaluating, gradient, logits_of, trained
from cl_ovq.training.replay import Memory, MemoryBatch


class Rehearsal(SupervisedTemplate):
    """Every step takes past samples beside the new ones: one batch, one forward pass, one write of the dictionary.

    The memory takes samples of an experience when it is over, or, where `AT_ONCE`, when it begins.

    Args:
        memory: past samples.
        memory_batch_size: past samples of each step.
        common: what every strategy is given.
    """

    STATE: tuple[str, ...] = ("memory",)  # of a checkpoint
    AT_ONCE = False

    def __init__(self, *, memory: Memory, memory_batch_size: int, **common: Any) -> None:
        super().__init__(**common)
        self.memory = memory
        self.memory_batch_size = memory_batch_size
        self.replayed: MemoryBatch | None = None

    def choose(self) -> MemoryBatch:
        """Return the past samples of a step; `mbatch` holds its new ones."""
        return self.memory.draw(self.memory_batch_size, self.device)

    def objective(self, new: Tensor, targets: Tensor, old: Tensor, replayed: MemoryBatch) -> Tensor:
        """Return the loss of a step.

        Args:
            new: outputs of the new samples: logits `[B, C]`; of sequences `[B, T, C]`, or values `[B, T]`.
            targets: their targets `[B]` or `[B, T]`.
            old: outputs of the past samples, M in the place of B.
            replayed: the past samples.
        """
        raise NotImplementedError

    def criterion(self) -> Tensor:
        """Return the loss."""
        if self.is_eval or self.replayed is None:
            return super().criterion()
        sizes = [len(self.mb_y) - len(self.replayed.y), len(self.replayed.y)]
        new, old = self.mb_output.split(sizes)
        return self.objective(new, self.mb_y[: sizes[0]], old, self.replayed)

    def _before_training_iteration(self, **kwargs: Any) -> None:
        self.replayed = self.choose() if len(self.memory) else None
        if self.replayed is not None:
            new = (self.mb_x, self.mb_y, self.mb_task_id)
            self.mbatch = [torch.cat(parts) for parts in zip(new, self.replayed[:3], strict=True)]
            append_rows(self, self.replayed.rows)
        super()._before_training_iteration(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        if self.AT_ONCE:
            self.memory.take(self.experience)
        super()._before_training_exp(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.replayed = None  # the last step's samples are not held until the next experience
        if not self.AT_ONCE:
            self.memory.take(self.experience)
        super()._after_training_exp(**kwargs)


class DarkExperienceReplay(Rehearsal):
    """DER and DER++ (Buzzega et al. 2020): past samples must keep the logits that they had.

    Loss: that of new samples + `alpha` times the mean squared distance of past samples' outputs where they have targets
    + `beta` times their loss (DER++). Outputs, logits or values, are those at the end of the experience that a sample
    came in, as in Avalanche; the paper's are those of the step in which it entered the memory.

    Args:
        outputs: shape of the model's output for one sample.
        alpha: weight of the logits.
        beta: weight of the targets; 0 for DER.
        common: see `Rehearsal`.
    """

    STATE = ("logits",)

    def __init__(self, *, outputs: tuple[int, ...], alpha: float, beta: float, **common: Any) -> None:
        super().__init__(**common)
        self.alpha = alpha
        self.beta = beta
        self.logits = torch.empty(0, *outputs)

    def objective(self, new: Tensor, targets: Tensor, old: Tensor, replayed: MemoryBatch) -> Tensor:
        """Return the loss of a step."""
        kept = self.logits[replayed.positions].to(old.device)
        asked = has_target(replayed.y)
        # Where tasks are told apart, logits of other tasks' classes are minus infinity.
        shown = kept.isfinite() & (asked if asked.ndim == kept.ndim else asked[..., None])
        loss = self._criterion(new, targets)
        loss = loss + self.alpha * functional.mse_loss(old[shown], kept[shown])
        return loss + self.beta * self._criterion(old, replayed.y) if self.beta else loss

    @torch.no_grad()
    def _after_training_exp(self, **kwargs: Any) -> None:
        held, logits = self.memory.rows, self.logits
        super()._after_training_exp(**kwargs)
        position = torch.full((len(self.memory.samples),), -1)
        position[held] = torch.arange(len(held))
        came = position[self.memory.rows]  # where each sample was before; -1 if it is new
        new = (came < 0).nonzero().squeeze(1)
        with evaluating(self.model):
            fresh = [
                logits_of(self.model, batch.x, batch.tasks).cpu()
                for batch in (self.memory.at(part, self.device) for part in new.split(self.eval_mb_size))
            ]
        known = torch.cat([logits, *fresh])
        came[new] = torch.arange(len(held), len(known))
        self.logits = known[came]


class AsymmetricReplay(Rehearsal):
    """ER-ACE (Caccia et al. 2022): new samples compete among their batch's classes only, those in memory among all.

    The memory must hold samples of the experience that is being learned: nothing else sets its classes against the old
    ones. In the paper samples enter one by one, here those of the whole experience when it begins, as in Avalanche.
    """

    AT_ONCE = True

    def objective(self, new: Tensor, targets: Tensor, old: Tensor, replayed: MemoryBatch) -> Tensor:
        """Return the mean of both losses."""
        absent = torch.ones(new.shape[1], dtype=torch.bool, device=new.device)
        absent[targets] = False
        incoming = functional.cross_entropy(new.masked_fill(absent, -torch.inf), targets)
        return (incoming + functional.cross_entropy(old, replayed.y)) / 2


class MaximallyInterfered(Rehearsal):
    """MIR (Aljundi et al. 2019): of some past samples, those whose loss the step alone would raise most.

    Args:
        candidates: past samples among which each step chooses.
        common: see `Rehearsal`.
    """

    def __init__(self, *, candidates: int, **common: Any) -> None:
        super().__init__(**common)
        self.candidates = candidates

    def choose(self) -> MemoryBatch:
        """Return the past samples that a plain gradient step on the new samples would harm most."""
        asked = self.memory.draw(self.candidates, self.device)
        rate = self.optimizer.param_groups[0]["lr"]
        with evaluating(self.model):
            logits = logits_of(self.model, self.mb_x, self.mb_task_id)
            step = gradient(self.model, self._criterion(logits, self.mb_y))
            with torch.no_grad():
                moved = {name: weight - rate * step[name] for name, weight in trained(self.model).items()}
                before, after = (
                    sample_losses(logits_of(self.model, asked.x, asked.tasks, weights), asked.y)
                    for weights in (None, moved)
                )
        harmed = (after - before).topk(min(self.memory_batch_size, len(asked.y))).indices.cpu()
        return self.memory.at(asked.positions[harmed], self.device)

    def objective(self, new: Tensor, targets: Tensor, old: Tensor, replayed: MemoryBatch) -> Tensor:
        """Return the mean over all samples of the step, as replay does."""
        return self._criterion(torch.cat([new, old]), torch.cat([targets, replayed.y]))
