"""Ridge regression of vectors from running sums, against scikit-learn's on all samples at once."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from cl_ovq.models.ridge import HELD_OUT, STRENGTHS
from cl_ovq.models.value_ridge import ValueRidgeHead

F, C = 7, 3


def samples(count, seed=0, noise=0.3):
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(F, C, generator=torch.Generator().manual_seed(9))
    x = 2 * torch.randn(count, F, generator=g) + 5
    return x, x @ weights - 4 + noise * torch.randn(count, C, generator=g)


@pytest.mark.parametrize("strength", [1e-3, 10.0])
@pytest.mark.parametrize("sizes", [(40,), (1, 4, 35), (3,)])
def test_it_is_the_fit_on_all_samples_at_once(strength, sizes):
    head = ValueRidgeHead(features=F, classes=C, strength=strength)
    (x, y), queries = samples(sum(sizes)), samples(9, 1)[0]
    for part in zip(x.split(sizes), y.split(sizes), strict=True):
        head.observe(*part)
    expected = Ridge(alpha=strength).fit(x.double().numpy(), y.double().numpy()).predict(queries.double().numpy())
    np.testing.assert_allclose(head(queries).numpy(), expected, atol=1e-4, rtol=1e-4)
    assert head.tokens == sum(sizes)


def test_nothing_is_told_before_the_first_sample():
    for strength in (1.0, None):
        head = ValueRidgeHead(features=F, classes=C, strength=strength)
        assert torch.equal(head(samples(4)[0]), torch.zeros(4, C))


def test_the_strength_is_chosen_on_a_fifth_of_an_experience():
    head = ValueRidgeHead(features=F, classes=C)
    (x, y), queries = samples(30, noise=6.0), samples(9, 1)[0]
    head.observe(x[:12], y[:12])
    head.observe(x[12:], y[12:])
    held = np.arange(30) % HELD_OUT == HELD_OUT - 1
    a, b = x.double().numpy(), y.double().numpy()
    errors = [np.square(Ridge(alpha=one).fit(a[~held], b[~held]).predict(a[held]) - b[held]).sum() for one in STRENGTHS]
    best = STRENGTHS[int(np.argmin(errors))]
    assert STRENGTHS[0] < best < STRENGTHS[-1]
    expected = Ridge(alpha=best).fit(a, b).predict(queries.double().numpy())
    np.testing.assert_allclose(head(queries).numpy(), expected, atol=1e-4, rtol=1e-4)
    head.end_experience()
    assert float(head.strength) == best
    np.testing.assert_allclose(head(queries).numpy(), expected, atol=1e-4, rtol=1e-4)


def test_it_goes_on_from_what_was_saved():
    head, other = (ValueRidgeHead(features=F, classes=C) for _ in range(2))
    head.observe(*samples(11))
    other.load_state_dict(copy.deepcopy(head.state_dict()))
    for one in (head, other):
        one.observe(*samples(6, seed=2))
        one.end_experience()
    queries, _ = samples(9, seed=1)
    assert torch.equal(head(queries), other(queries))
    assert head.nbytes == 8 + sum(buffer.nbytes for buffer in head.learned.buffers())
