"""Heads that learn without gradients, against scikit-learn and NumPy on all samples at once."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from cl_ovq.errors import UserError
from cl_ovq.models.discriminant import NearestMean, StreamingDiscriminant
from cl_ovq.models.fecam import MahalanobisHead
from cl_ovq.models.memory import MemoryHead
from cl_ovq.models.neighbours import NearestNeighbours, sample_bytes
from cl_ovq.models.ridge import HELD_OUT, STRENGTHS, RidgeHead
from cl_ovq.models.slots import STORAGE

FEATURES, CLASSES, SEEN = 12, 6, 5  # the last class never comes
BATCHES = pytest.mark.parametrize("batch", [1, 7, 300])


def ranpac(**options):
    torch.manual_seed(0)
    return RidgeHead(features=FEATURES, classes=CLASSES, width=40, **options)


HEADS = {
    "ncm": lambda: NearestMean(features=FEATURES, classes=CLASSES),
    "ncm, cosine": lambda: NearestMean(features=FEATURES, classes=CLASSES, distance="cosine"),
    "slda": lambda: StreamingDiscriminant(features=FEATURES, classes=CLASSES),
    "ridge": lambda: RidgeHead(features=FEATURES, classes=CLASSES, strength=0.5),
    "ridge, strength chosen": lambda: RidgeHead(features=FEATURES, classes=CLASSES),
    "ranpac": lambda: ranpac(strength=0.5),
    "fecam": lambda: MahalanobisHead(features=FEATURES, classes=CLASSES),
    "knn": lambda: NearestNeighbours(features=FEATURES, classes=CLASSES, capacity=1000),
}
# Those whose definition does not look at where zero is.
FREE_OF_ORIGIN = {
    **{name: HEADS[name] for name in ("ncm", "slda", "ridge", "ridge, strength chosen", "knn")},
    **{
        f"memory, {storage}": partial(
            MemoryHead, features=FEATURES, classes=CLASSES, capacity=120, normalise=False, storage=storage
        )
        for storage in STORAGE
    },
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def samples(seed=0, count=300, origin=0.0):
    """Correlated features whose classes differ in mean, scale and number of samples, around `origin`."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator)
    means = torch.randn(SEEN, FEATURES, generator=generator)
    generator.manual_seed(seed)
    y = torch.multinomial(torch.arange(1.0, SEEN + 1), count, replacement=True, generator=generator)
    noise = torch.randn(count, FEATURES, generator=generator) @ mixing
    return origin + means[y] + noise * (0.2 + 0.1 * y[:, None]), y


def learned(head, x, y, batch=32):
    for part in torch.arange(len(y)).split(batch):
        head.observe(x[part], y[part])
    return head


def differences(log_probabilities):
    """Scores of the classes seen, but for what all of a sample's have in common."""
    scores = np.asarray(log_probabilities, dtype=np.float64)[:, :SEEN]
    return scores - scores[:, :1]


def one_hot(y):
    return np.eye(CLASSES)[y.numpy()]


@BATCHES
@pytest.mark.parametrize("origin", [0.0, 300.0])
def test_ridge_is_scikit_learns_on_all_data_at_once(batch, origin):
    x, y = samples(origin=origin)
    head = learned(RidgeHead(features=FEATURES, classes=CLASSES, strength=3.0), x, y, batch)
    expected = Ridge(alpha=3.0, solver="cholesky").fit(x.double().numpy(), one_hot(y)).predict(x.double().numpy())
    found = head(x)
    np.testing.assert_allclose(differences(found), differences(expected), atol=2e-6)
    assert (found[:, SEEN] < -14).all()  # a class never seen


def test_ridge_without_a_penalty_is_least_squares_where_features_are_dependent():
    x, y = samples(count=60)
    x = 1000 * torch.cat([x, x[:, :4], torch.ones(60, 3)], 1)  # rank 12 of 19
    head = learned(RidgeHead(features=19, classes=CLASSES, strength=1e-12), x, y)
    a, t = x.double().numpy(), one_hot(y)
    a, t = a - a.mean(0), t - t.mean(0)
    expected = a @ np.linalg.lstsq(a, t, rcond=None)[0] + one_hot(y).mean(0)
    np.testing.assert_allclose(differences(head(x)), differences(expected), atol=1e-5)


def errors_by_hand(experiences, lift, *, centred):
    """Squared error of every strength on what each experience holds out, of fits on all samples but these."""
    earlier, found, came = [], [], 0
    for x, y in experiences:
        x, t = lift(x.double().numpy()), one_hot(y)
        held = (came + np.arange(len(y))) % HELD_OUT == HELD_OUT - 1
        came += len(y)
        fit = [*earlier, (x[~held], t[~held])]
        a, b = (np.concatenate(parts) for parts in zip(*fit, strict=True))
        origin, prior = (a.mean(0), b.mean(0)) if centred else (0, 0)
        a, b = a - origin, b - prior
        found.append({})
        for strength in STRENGTHS:
            weights = np.linalg.solve(a.T @ a + strength * np.eye(a.shape[1]), a.T @ b)
            found[-1][strength] = np.square((x[held] - origin) @ weights + prior - t[held]).sum()
        earlier.append((x, t))
    return found


@BATCHES
@pytest.mark.parametrize("projected", [False, True])
def test_the_strength_is_chosen_on_a_fifth_of_each_experience(batch, projected):
    head = ranpac() if projected else RidgeHead(features=FEATURES, classes=CLASSES)
    random = head.projection.double().numpy()
    lift = (lambda x: np.maximum(x @ random, 0)) if projected else (lambda x: x)
    (x, y), found = samples(count=400), []
    experiences = [(x[part], y[part]) for part in (y < 2, y == 2, y > 2)]
    for x, y in experiences:
        learned(head, x, y, batch)
        assert head.tokens == int(head.seen.sum())
        before = head(x)
        head.end_experience()
        torch.testing.assert_close(head(x), before)  # a read between experiences chooses as well
        assert int(head.held.tokens) == 0
        found.append(float(head.strength))
    for strength, errors in zip(found, errors_by_hand(experiences, lift, centred=not projected), strict=True):
        assert errors[strength] <= min(errors.values()) * (1 + 1e-9)  # the weakest penalties may be alike
        assert errors[strength] < 0.999 * max(errors.values())
    x, y = (torch.cat(parts) for parts in zip(*experiences, strict=True))
    again = copy.deepcopy(head)
    fixed = RidgeHead(features=FEATURES, classes=CLASSES, strength=found[-1], width=40 if projected else None)
    fixed.projection.copy_(again.projection)
    torch.testing.assert_close(head(x), learned(fixed, x, y)(x))  # nothing that was held out is lost


@BATCHES
def test_ranpac_is_ridge_on_a_random_projection(batch):
    x, y = samples()
    head = learned(ranpac(strength=0.5), x, y, batch)
    h, t = np.maximum(x.double().numpy() @ head.projection.double().numpy(), 0), one_hot(y)
    expected = h @ np.linalg.solve(h.T @ h + 0.5 * np.eye(40), h.T @ t)
    np.testing.assert_allclose(differences(head(x)), differences(expected), atol=1e-5)
    assert torch.equal(head.projection, ranpac().projection)


def fecam_by_hand(x, y, shrinkage, tukey):
    """Scores of the training samples themselves, in double precision."""
    a = np.sign(x) * np.power(np.abs(x), tukey)
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    scores = np.zeros((len(y), SEEN))
    for label in range(SEEN):
        members = a[y == label]
        mean, covariance = members.mean(0), np.cov(members.T)
        diagonal, others = np.diagonal(covariance), covariance[~np.eye(FEATURES, dtype=bool)]
        ones = np.ones_like(covariance)
        gammas = shrinkage * diagonal.mean() * np.eye(FEATURES) + shrinkage * others.mean() * (ones - np.eye(FEATURES))
        shrunk = covariance + gammas
        deviations = np.sqrt(np.diagonal(shrunk))
        away = unit - mean / np.linalg.norm(mean)
        precision = np.linalg.inv(shrunk / np.outer(deviations, deviations))
        scores[:, label] = -np.einsum("bf,fg,bg->b", away, precision, away) / 2
    return scores


@BATCHES
@pytest.mark.parametrize(("shrinkage", "tukey"), [(1.0, 0.5), (0.1, 1.0)])
def test_fecam_is_the_papers_mahalanobis_distance(batch, shrinkage, tukey):
    x, y = samples()
    x = x.abs()  # the paper's features are outputs of a ReLU
    head = MahalanobisHead(features=FEATURES, classes=CLASSES, shrinkage=shrinkage, tukey=tukey)
    learned(head, x, y, batch)
    expected = fecam_by_hand(x.double().numpy(), y.numpy(), shrinkage, tukey)
    np.testing.assert_allclose(differences(head(x)), differences(expected), atol=2e-5)


FAR = pytest.mark.parametrize("origin", [1e3, 1e4])


@FAR
@pytest.mark.parametrize("make", FREE_OF_ORIGIN.values(), ids=FREE_OF_ORIGIN)
def test_what_all_features_have_in_common_changes_no_prediction(make, origin):
    (x, y), (queries, _) = samples(origin=origin), samples(1, origin=origin)
    far, near = learned(make(), x, y), learned(make(), x - origin, y)  # a difference without rounding
    for head in (far, near):
        getattr(head, "end_experience", lambda: None)()
    found, expected = far(queries), near(queries - origin)
    assert len(expected.argmax(1).unique()) == SEEN
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.99  # a tie may fall the other way


FREE_OF_SCALE = {
    **{name: HEADS[name] for name in ("ncm", "knn", "fecam")},
    **{
        f"memory, {'' if normalise else 'not '}normalised": partial(
            MemoryHead, features=FEATURES, classes=CLASSES, capacity=120, normalise=normalise
        )
        for normalise in (True, False)
    },
}


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**70])
@pytest.mark.parametrize("make", FREE_OF_SCALE.values(), ids=FREE_OF_SCALE)
def test_how_large_all_features_are_changes_no_prediction(make, scale):
    """Squares of such features are infinite in single precision, or zero."""
    (x, y), (queries, _) = samples(), samples(1)
    found, expected = learned(make(), scale * x, y)(scale * queries), learned(make(), x, y)(queries)
    assert found.isfinite().all()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.99


@FAR
@pytest.mark.parametrize("tukey", [0.5, 1.0])
def test_fecam_far_from_zero_answers_as_its_definition_does(tukey, origin):
    """By which it depends on where zero is: it compares directions from there."""
    x, y = samples(origin=origin)
    head = learned(MahalanobisHead(features=FEATURES, classes=CLASSES, tukey=tukey), x, y)
    expected = fecam_by_hand(x.double().numpy(), y.numpy(), 1.0, tukey).argmax(1)
    assert len(set(expected)) == SEEN
    assert (head(x).argmax(1).numpy() == expected).mean() > 0.99
    assert (head.double()(x.double()).argmax(1).numpy() == expected).mean() > 0.99


@FAR
def test_ranpac_far_from_zero_answers_as_its_definition_does(origin):
    """By which it depends on where zero is: random features are cut off there, and nothing is centred."""
    x, y = samples(origin=origin)
    head = learned(ranpac(strength=0.5), x, y)
    h, t = np.maximum(x.double().numpy() @ head.projection.double().numpy(), 0), one_hot(y)
    expected = (h @ np.linalg.solve(h.T @ h + 0.5 * np.eye(40), h.T @ t)).argmax(1)
    assert (head(x).argmax(1).numpy() == expected).mean() > 0.99


@pytest.mark.parametrize("origin", [0.0, 1e4])
def test_class_means_are_compared_wherever_features_lie(origin):
    x, y = samples(origin=origin)
    far = x.double().numpy()
    means = np.stack([far[y == label].mean(0) for label in range(SEEN)])
    within = far - means[y]
    covariance = (1 - 1e-4) * within.T @ within / len(y) + 1e-4 * np.eye(FEATURES)
    for name, precision in (("ncm", np.eye(FEATURES)), ("slda", np.linalg.inv(covariance))):
        away = far[:, None] - means
        expected = -np.einsum("bcf,fg,bcg->bc", away, precision, away) / 2
        found = learned(HEADS[name](), x, y)(x)[:, :SEEN]
        assert (found.argmax(1).numpy() == expected.argmax(1)).all(), name
        likely = expected > expected.max(1, keepdims=True) - 5  # far from the floor of a probability
        aligned = found.numpy() - np.take_along_axis(found.numpy(), expected.argmax(1)[:, None], 1)
        np.testing.assert_allclose(
            aligned[likely], (expected - expected.max(1, keepdims=True))[likely], atol=0.01, err_msg=name
        )


@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize("origin", [0.0, 300.0])
def test_knn_is_scikit_learns(neighbours, origin):
    (x, y), (queries, _) = samples(origin=origin), samples(1, origin=origin)
    head = NearestNeighbours(features=FEATURES, classes=CLASSES, capacity=300, neighbours=neighbours)
    learned(head, x, y)
    expected = KNeighborsClassifier(neighbours).fit(x.double().numpy(), y.numpy()).predict(queries.double().numpy())
    assert (head(queries).argmax(1).numpy() == expected).all()


def test_knn_keeps_as_many_of_each_class_within_its_budget():
    torch.manual_seed(0)
    made = NearestNeighbours(features=FEATURES, classes=CLASSES, capacity=50)
    x, y = samples(count=900)
    one, many = (learned(copy.deepcopy(made), x, y, batch) for batch in (1, 300))
    for (name, buffer), other in zip(one.named_buffers(), many.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert torch.equal(one.targets.bincount(minlength=CLASSES), torch.tensor([10] * SEEN + [0]))
    assert one.tokens == 900
    assert one.size == 50
    where = torch.cat([(x == sample).all(1).nonzero().squeeze(1) for sample in one.samples])
    assert torch.equal(where, where.sort().values)
    assert torch.equal(y[where], one.targets)
    # Neither first nor last samples are preferred; a mean of 50 from 0 to 899 lies within 3 deviations of 37.
    assert abs(float(where.float().mean()) - 450) < 111
    few = learned(copy.deepcopy(made), x[y < 1], y[y < 1])
    room = few.size
    learned(few, x[y > 0], y[y > 0])
    assert room == 50
    assert torch.equal(few.targets.bincount(minlength=CLASSES), torch.tensor([10] * SEEN + [0]))
    assert one.nbytes == 50 * sample_bytes(FEATURES) + 8 * CLASSES + 8


@every_head
def test_the_order_of_samples_does_not_matter(make, request):
    x, y = samples()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
    one, other = make(), make()
    learned(one, x, y)
    learned(other, x[order], y[order], 50)
    if getattr(one, "held", None) is not None:  # of the samples, only those held out decide the strength
        one.end_experience(), other.end_experience()
        other.strength.copy_(one.strength)
    torch.testing.assert_close(one(x), other(x), atol=1e-6, rtol=1e-6)


@every_head
def test_a_batch_of_one_is_answered_as_a_batch_of_many(make):
    head = learned(make(), *samples())
    x = samples(1, 128)[0]
    one = torch.cat([head(row[None]) for row in x])
    assert torch.equal(head(x).argmax(1), one.argmax(1))
    torch.testing.assert_close(head(x), one, atol=1e-5, rtol=1e-4)


@every_head
def test_little_to_learn_from(make):
    head, (x, y) = make(), samples(count=40)
    assert torch.allclose(head(x).exp(), torch.tensor(1 / CLASSES))  # nothing seen
    head.observe(x[:0], y[:0])
    assert head.tokens == 0
    head.observe(x[:1], y[:1])  # one sample of one class
    head.end_experience()
    assert (head(x).argmax(1) == y[0]).all()
    other = (y != y[0]).nonzero()[0]
    head.observe(x[other], y[other])  # and one of another
    head.end_experience()
    assert head(x).isfinite().all()
    assert set(head(x).argmax(1).tolist()) <= {int(y[0]), int(y[other])}
    same = make()
    same.observe(torch.ones(9, FEATURES), torch.arange(9) % 3)  # features that tell nothing
    same.end_experience()
    assert same(x).isfinite().all()
    with pytest.raises(ValueError, match="features must be finite"):
        head.observe(torch.full((1, FEATURES), torch.nan), y[:1])
    assert head.tokens == 2


@every_head
def test_a_state_that_is_loaded_is_read(make):
    (x, y), head = samples(), make()
    learned(head, x, y)
    fresh = learned(make(), x, (y + 1) % SEEN)
    assert not torch.equal(fresh(x), head(x))
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh(x), head(x))
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    learned(head, *samples(5))
    learned(fresh, *samples(5))
    assert torch.equal(fresh(x), head(x))


@pytest.mark.parametrize("make", [*HEADS.values(), FREE_OF_ORIGIN["memory, int8"]], ids=[*HEADS, "memory"])
def test_what_a_read_needs_is_made_once_for_all_experiences_that_are_evaluated(make, monkeypatch):
    """Avalanche moves a model to its device before each; a write, a load and a real move make it anew."""
    (x, y), head = samples(), make()
    learned(head, x, y)
    made = []
    name = "_reading" if isinstance(head, MemoryHead) else "_prepare"
    prepare = getattr(head, name)
    monkeypatch.setattr(head, name, lambda *settings: made.append(1) or prepare(*settings))
    expected = head(x)
    for _ in range(3):
        torch.testing.assert_close(head.to("cpu").eval()(x), expected, rtol=0, atol=0)
    assert len(made) == 1
    learned(head, *samples(5))
    assert not torch.equal(head(x), expected)
    head.load_state_dict(head.state_dict())
    head(x)
    assert len(made) == 3
    head.to("meta")
    cached = head._cache if isinstance(head, MemoryHead) else head._prepared
    assert cached is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_head
def test_on_a_gpu(make):
    x, y = samples()
    expected = learned(make(), x, y)(x)
    head = learned(make().cuda(), x.cuda(), y.cuda())
    torch.testing.assert_close(head(x.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)
    head.end_experience()
    torch.testing.assert_close(head.cpu()(x), expected, atol=1e-3, rtol=1e-3)


def test_mistakes(session):
    size = sample_bytes(64)
    knn = ("strategy.name=knn", "model.name=pixels")
    with pytest.raises(UserError, match=r"strategy\.capacity: 9 is too small: it must hold one sample per class .10"):
        session(*knn, "strategy.capacity=9")
    with pytest.raises(UserError, match=rf"strategy\.capacity_bytes: 2000 .* sample of {size} bytes per class .10"):
        session(*knn, "strategy.capacity_bytes=2000")
    trained = session(*knn, f"strategy.capacity_bytes={25 * size + 7}")
    assert trained.model.head.memory.capacity == 25
