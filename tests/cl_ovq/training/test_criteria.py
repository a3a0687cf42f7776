"""The losses of sequence streams against PyTorch's, target by target."""

import pytest
import torch
from torch.nn import functional

from cl_ovq.training.criteria import (
    OBJECTIVES,
    TokenCrossEntropy,
    ValueSquaredError,
    count_targets,
    sample_losses,
    target_losses,
)
from streams import IGNORED
from streams.stream import KINDS


def test_cross_entropy_is_the_mean_over_targets():
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, IGNORED, 2, IGNORED], [IGNORED] * 4, [0, 4, IGNORED, 3]])
    loss = TokenCrossEntropy()(logits, targets)
    known = targets != IGNORED
    torch.testing.assert_close(loss, functional.cross_entropy(logits[known], targets[known]))
    loss.backward()
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()
    assert count_targets(targets) == 5


def test_squared_error_is_the_mean_over_targets():
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 4, dtype=torch.float64)
    targets[0, 1:] = torch.nan
    loss = ValueSquaredError()(values, targets)
    known = ~targets.isnan()
    torch.testing.assert_close(loss, functional.mse_loss(values[known], targets[known]))
    loss.backward()
    assert (values.grad[~known] == 0).all()
    assert count_targets(targets) == 9


@pytest.mark.parametrize(
    ("criterion", "outputs", "targets"),
    [
        (TokenCrossEntropy(), torch.zeros(1, 2, 3, requires_grad=True), torch.full((1, 2), IGNORED)),
        (ValueSquaredError(), torch.zeros(1, 2, requires_grad=True), torch.full((1, 2), torch.nan)),
    ],
)
def test_no_targets_no_loss(criterion, outputs, targets):
    loss = criterion(outputs, targets)
    loss.backward()
    assert loss == 0
    assert (outputs.grad == 0).all()


def test_losses_of_single_targets_and_samples_are_those_of_loops():
    logits, classes = torch.randn(3, 4, 5), torch.tensor([[1, IGNORED, 2, 3], [IGNORED] * 4, [0, 4, 1, 3]])
    values, numbers = torch.randn(3, 4), torch.randn(3, 4)
    numbers[0, 1:] = numbers[1] = torch.nan
    for outputs, targets, loss in ((logits, classes, functional.cross_entropy), (values, numbers, functional.mse_loss)):
        single, samples = target_losses(outputs, targets), sample_losses(outputs, targets)
        for b in range(3):
            found = []
            for t in range(4):
                if targets[b, t] == IGNORED or targets[b, t] != targets[b, t]:
                    assert single[b, t] == 0
                    continue
                found.append(loss(outputs[b, t], targets[b, t]))
                torch.testing.assert_close(single[b, t], found[-1])
            torch.testing.assert_close(samples[b], sum(found) / len(found) if found else torch.tensor(0.0))
    of_images = functional.cross_entropy(logits[0], classes[2], reduction="none")
    torch.testing.assert_close(target_losses(logits[0], classes[2]), of_images)
    torch.testing.assert_close(sample_losses(logits[0], classes[2]), of_images)


def test_every_kind_of_stream_has_an_objective():
    assert tuple(OBJECTIVES) == KINDS
    assert count_targets(torch.tensor([3, 0, 1])) == 3
