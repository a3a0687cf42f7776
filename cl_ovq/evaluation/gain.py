"""What the state of a learner is worth: how often its weights alone, without any, name the class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cl_ovq.in_context.head import InContextHead
from cl_ovq.models.heads import RememberingHead, unwrap
from cl_ovq.training.passes import logits_of
from streams import Stream, rows_of


def empty_state_accuracy(
    model: nn.Module, stream: Stream, test: Iterable[Any], device: torch.device, batch_size: int
) -> float | None:
    """Return the accuracy of a trained learner whose state is that before the first sample, mean over experiences.

    It is asked among the classes that it has seen, with features standardised as they are; neither tells it which class
    a sample is of.

    Args:
        model: trained; left in evaluation mode.
        stream: that was learned.
        test: experiences to be asked for.
        device: where the model lies.
        batch_size: samples at a time.

    Returns:
        None for a model that is no learner.
    """
    head = getattr(unwrap(model), "head", None)
    if not (isinstance(head, RememberingHead) and isinstance(head.memory, InContextHead)):
        return None
    shares = []
    model.eval()
    with head.memory.emptied(), torch.no_grad():
        for one in test:
            right = 0
            for rows in rows_of(one.dataset).split(batch_size):
                tasks = torch.full((len(rows),), one.current_experience, device=device)
                found = logits_of(model, stream.samples.gather(rows).to(device), tasks).argmax(1).cpu()
                right += int((found == stream.samples.targets[rows]).sum())
            shares.append(right / len(one.dataset))
    return sum(shares) / len(shares)
