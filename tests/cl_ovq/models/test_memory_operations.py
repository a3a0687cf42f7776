"""Whole memories merged, resized, and made to forget."""

from __future__ import annotations

import pytest
import torch
from memory_helpers import filled, plain, samples

from cl_ovq.models.read_out import FLOOR


def test_merged_heads_know_what_both_learned():
    x, y = samples(600)
    a, b, whole = (plain(features=6, classes=4, capacity=80) for _ in range(3))
    first = y < 2
    a.observe(x[first], y[first])
    b.observe(x[~first], y[~first])
    whole.observe(torch.cat([x[first], x[~first]]), torch.cat([y[first], y[~first]]))
    a.merge_(b)
    assert a.tokens == 600
    assert (a(x).argmax(1) == whole(x).argmax(1)).float().mean() > 0.98
    a.merge_(a)  # the same classes again: slots unite
    assert a.tokens == 1200
    assert a.size <= 80
    assert (a(x).argmax(1) == y).float().mean() > 0.9
    more, labels = samples(200, seed=0)
    a.observe(more, labels)
    used = a.slots.counts > 0
    assert (used.int().diff(dim=1) <= 0).all()  # no holes
    with pytest.raises(ValueError, match="equal slots"):
        a.merge_(plain(features=6, classes=4, capacity=40))


def test_forgetting_a_class_leaves_the_others():
    head, x, y = filled(320)
    before = head(x)
    head.forget([2])
    log = head(x)
    torch.testing.assert_close(log[:, 2].exp(), torch.full((320,), FLOOR / 4))
    kept = [0, 1, 3]
    torch.testing.assert_close(log[:, kept].log_softmax(1), before[:, kept].log_softmax(1), rtol=1e-3, atol=1e-2)
    head.observe(x[y == 2], y[y == 2])
    assert (head(x).argmax(1) == y).float().mean() > 0.9


def test_a_larger_capacity_changes_no_answer_and_a_smaller_one_loses_no_sample():
    head, x, y = filled(320)
    before, counts = head(x), head.slots.counts.sum(1)
    head.resize_(400)
    assert head.slots.counts.shape == (4, 100)
    torch.testing.assert_close(head(x), before, rtol=1e-4, atol=1e-4)
    head.resize_(12)
    assert (head.slots.counts > 0).sum(1).tolist() == [3] * 4
    assert torch.equal(head.slots.counts.sum(1), counts)
    assert (head(x).argmax(1) == y).float().mean() > 0.9
    head.observe(x, y)
    assert head.tokens == 640
    with pytest.raises(ValueError, match="at least one slot per class"):
        head.resize_(3)
