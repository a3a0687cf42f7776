"""The running covariance within classes, against numpy and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_helpers import pooled, samples
from sklearn.covariance import shrunk_covariance

from cl_ovq.models.whitening import ClassCovariance, whitening


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=8), far=st.sampled_from([0.0, 1e3]), features=st.sampled_from([3, 70])
)
def test_covariance_is_numpys_whatever_the_batches(cuts, far, features):
    x, y = samples(200, features, far=far)
    x = x.double()
    running = ClassCovariance(features=features, classes=5)
    edges = [0, *sorted(cuts), 200]
    for start, end in itertools.pairwise(edges):
        running.update(x[start:end], y[start:end])
    expected = pooled(x.numpy(), y.numpy())
    np.testing.assert_allclose(running.covariance(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(running.mean(), x.mean(0), rtol=1e-10)
    assert running.counts.tolist() == [*torch.bincount(y, minlength=4).tolist(), 0]
    np.testing.assert_allclose(running.means[2], x[y == 2].mean(0), rtol=1e-9, atol=1e-9)


def test_covariance_of_one_class_is_the_ordinary_one():
    x, _ = samples(100)
    running = ClassCovariance(features=6, classes=1)
    for row in x:
        running.update(row[None], torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(running.covariance(), np.cov(x.double().T, bias=True), rtol=1e-9, atol=1e-9)


def test_covariance_keeps_small_deviations_of_large_features():
    x = 1e6 + torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-2
    running = ClassCovariance(features=4, classes=1)
    for part in x.split(7):
        running.update(part, torch.zeros(len(part), dtype=torch.int64))
    np.testing.assert_allclose(running.covariance(), np.cov(x.T, bias=True), rtol=1e-5, atol=1e-10)


def test_merged_covariance_is_that_of_all_samples():
    x, y = samples(300)
    whole, a, b = (ClassCovariance(features=6, classes=4) for _ in range(3))
    whole.update(x, y)
    a.update(x[:120], y[:120])
    b.update(x[120:], y[120:])
    a.merge_(b)
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(a.state_dict()[name], expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="cannot join"):
        a.merge_(ClassCovariance(features=5, classes=4))


def test_half_of_the_scatter_is_kept():
    assert ClassCovariance(features=784, classes=10).scatter.numel() < 1.1 * 784**2 / 2


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 1.0])
def test_whitening_inverts_the_shrunk_covariance(shrinkage):
    x, y = samples(300)
    covariance = pooled(x.double().numpy(), y.numpy())
    w = whitening(torch.from_numpy(covariance), shrinkage).numpy()
    shrunk = shrunk_covariance(covariance, max(shrinkage, 1e-6))
    np.testing.assert_allclose(w.T @ shrunk @ w, np.eye(6), atol=1e-9)
    np.testing.assert_allclose(w @ w.T, np.linalg.inv(shrunk), rtol=1e-7, atol=1e-9)


def test_nothing_to_whiten():
    torch.testing.assert_close(whitening(torch.zeros(3, 3, dtype=torch.float64), 0.1), torch.eye(3).double())
