"""The memory head against numpy, scipy and scikit-learn, and what must hold of any memory."""

from __future__ import annotations

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_helpers import filled, plain, pooled, samples
from scipy.stats import multivariate_normal
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cl_ovq.models.memory import MemoryHead
from cl_ovq.models.read_out import FLOOR, default_beta
from cl_ovq.models.slots import ClassSlots
from kernels import DictionaryOptions


def bytes_of(module: torch.nn.Module) -> bytes:
    return b"".join(t.contiguous().numpy().tobytes() for t in module.state_dict().values())


# The read-out


def brute_force(head: MemoryHead, x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor, priors: np.ndarray):
    """Class probabilities of the mixture by scipy's densities, from the head's slots and numpy's covariance."""
    covariance = shrunk_covariance(pooled(x.double().numpy(), y.numpy()), head.settings.shrinkage)
    state = head.state
    log = np.full((len(queries), head.classes), -np.inf)
    for c in range(head.classes):
        counts = state.counts[c, 0]
        for count, mean in zip(counts, state.keys[c, 0], strict=True):
            if count:
                normal = multivariate_normal(mean.double().numpy(), covariance / head.settings.beta)
                density = normal.logpdf(queries.double().numpy()) + np.log(float(count / counts.sum()))
                log[:, c] = np.logaddexp(log[:, c], density)
        normal = multivariate_normal(x[y == c].double().numpy().mean(0), covariance)
        log[:, c] += head.settings.class_weight * normal.logpdf(queries.double().numpy()) + np.log(priors[c])
    p = np.exp(log - log.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("class_weight", [0.0, 0.3])
@pytest.mark.parametrize("prior", ["balanced", "counts"])
def test_read_out_is_gaussian_mixture_regression(class_weight, prior):
    # 19 chunks, none open
    head, x, y = filled(
        304, chunk_size=16, beta=0.6, shrinkage=0.2, class_weight=class_weight, prior=prior, confidence=1.0
    )
    queries, _ = samples(50, seed=1)
    priors = np.bincount(y) / len(y) if prior == "counts" else np.full(4, 0.25)
    np.testing.assert_allclose(head(queries).exp(), brute_force(head, x, y, queries, priors), atol=1e-4)
    head.chosen[3] = 0.5
    p = np.sqrt(brute_force(head, x, y, queries, priors))
    np.testing.assert_allclose(head(queries).exp(), p / p.sum(1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("prior", ["balanced", "counts"])
@pytest.mark.parametrize("class_weight", [0.0, 0.5])
def test_one_slot_a_class_is_lda(prior, class_weight):
    options = {"capacity": 4, "shrinkage": 0.1, "prior": prior, "confidence": 1.0}
    head, x, y = filled(beta=1.0 - class_weight, class_weight=class_weight, **options)
    priors = None if prior == "counts" else [0.25] * 4
    # scikit-learn pools with the priors as weights, so equal priors need equal classes for an equal covariance.
    if prior == "balanced":
        keep = torch.cat([(y == c).nonzero()[:50] for c in range(4)]).squeeze(1)
        x, y = x[keep], y[keep]
        head = plain(features=6, classes=4, beta=1.0 - class_weight, class_weight=class_weight, **options)
        head.observe(x, y)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1, priors=priors).fit(x.double().numpy(), y.numpy())
    queries, _ = samples(100, seed=2)
    np.testing.assert_allclose(head(queries).exp(), lda.predict_proba(queries.double().numpy()), atol=1e-4)


def test_every_sample_a_slot_and_no_covariance_is_a_kernel_density():
    x, y = samples(40)
    head = plain(
        features=6, classes=4, capacity=160, growth="all", shrinkage=1.0, beta=0.5, class_weight=0.0, confidence=1.0
    )
    head.observe(x, y)
    scale = np.trace(pooled(x.double().numpy(), y.numpy())) / 6
    queries, _ = samples(20, seed=1)
    kernel = torch.exp(-0.5 * 0.5 / scale * torch.cdist(queries.double(), x.double()).square())
    density = torch.stack([kernel[:, y == c].mean(1) for c in range(4)], 1)
    torch.testing.assert_close(
        head(queries).exp().double(), density / density.sum(1, keepdim=True), rtol=1e-3, atol=1e-5
    )


def test_far_features_are_read_as_near_ones():
    near, far = (plain(features=6, classes=4, capacity=40) for _ in range(2))
    x, y = samples(300)
    near.observe(x, y)
    far.observe(x + 256, y)
    torch.testing.assert_close(near(x).exp(), far(x + 256).exp(), rtol=0, atol=5e-3)


def test_gradients_reach_the_features_and_nothing_else():
    head, _, _ = filled(classes=7)
    x = samples(5, seed=1)[0].requires_grad_()
    head(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert not list(head.parameters())


# The slots


def test_slots_are_means_of_the_samples_that_they_count():
    x, y = samples(500)
    slots, given_to = ClassSlots(features=6, classes=4, options=DictionaryOptions(capacity=10), storage="float32"), []
    seen = torch.zeros(4, dtype=torch.int64)
    choose = slots._choose
    slots._choose = lambda *a: given_to.append(choose(*a)) or given_to[-1]
    for turn, (a, b) in enumerate(zip(x.split(16), y.split(16), strict=True)):
        slots.write(a, b, seen, turn)
        seen += torch.bincount(b, minlength=4)
    chosen = torch.cat(given_to)
    assert torch.equal(chosen // 10, y)  # within the class
    for slot in chosen.unique().tolist():
        assert slots.counts.view(-1)[slot] == (chosen == slot).sum()
        torch.testing.assert_close(slots.read().flatten(0, 1)[slot], x[chosen == slot].mean(0), rtol=1e-5, atol=1e-5)
    n = torch.bincount(y)
    assert (slots.counts > 0).sum(1).tolist() == (n * 10 // (n + 10)).tolist()  # the plateau schedule, class by class


def test_a_sample_goes_to_the_nearest_slot_of_its_class():
    head = plain(features=2, classes=2, capacity=4, chunk_size=1, growth="all")
    head.observe(torch.tensor([[0.0, 0], [10, 0], [0, 1], [0, -1]]), torch.tensor([0, 0, 1, 1]))
    head.observe(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    assert head.slots.counts.tolist() == [[2, 1], [1, 1]]
    assert head.slots.read()[0].tolist() == [[0.5, 0.25], [10, 0]]


@pytest.mark.parametrize("together", [1, 2**20])
def test_every_sample_of_a_chunk_goes_to_the_nearest_slot_of_its_class(together, monkeypatch):
    monkeypatch.setattr("cl_ovq.models.slots._TOGETHER", together)
    x, y = samples(600, classes=9)
    y[x[:, 0] > 1] = 8  # classes of unequal size; the last one's slots are the last of all
    slots = ClassSlots(features=6, classes=9, options=DictionaryOptions(capacity=12), storage="float32")
    seen, others = torch.zeros(9, dtype=torch.int64), 0
    for turn, (a, b) in enumerate(zip(x.split(40), y.split(40), strict=True)):
        means, size, n = slots.read().double(), (slots.counts > 0).sum(1), seen.clone()
        begins = []  # the samples at which the schedule of their class steps up
        for sample, label in zip(a.double(), b.tolist(), strict=True):
            n[label] += 1
            begins.append(max(1, int(n[label]) * 12 // (int(n[label]) + 12)) > int(size[label]))
            if begins[-1]:
                means[label, size[label]] = sample
                size[label] += 1
        for sample, label, slot, new in zip(a.double(), b, slots._choose(a, b, seen), begins, strict=True):
            distances = (means[label, : size[label]] - sample).norm(dim=1)
            assert slot // 12 == label
            assert distances[slot % 12] < (1e-9 if new else distances.min() + 1e-5)
            others += not new
        slots.write(a, b, seen, turn)
        seen += torch.bincount(b, minlength=9)
        assert torch.equal((slots.counts > 0).sum(1), size)
    assert others > 400


def test_growth_resumes_with_new_classes_and_plateaus_on_known_ones():
    x, y = samples(4000)
    head, sizes = plain(features=6, classes=4, capacity=80), []
    for classes in ([0, 1], [0, 1], [2, 3], [2, 3]):
        for half in range(2):
            mine = torch.isin(y, torch.tensor(classes))
            head.observe(x[mine][half::2], y[mine][half::2])
            sizes.append(head.size)
    assert sizes[0] > 30  # most of what two classes may have
    assert sizes[3] - sizes[1] <= 2
    assert sizes[4] - sizes[3] > 30
    assert sizes[7] - sizes[5] <= 2


# What must hold of a memory


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=6))
def test_batches_do_not_matter(cuts):
    x, y = samples(150)
    whole, pieces = (plain(features=6, classes=4, capacity=40) for _ in range(2))
    whole.observe(x, y)
    edges = [0, *sorted(cuts), 150]
    for start, end in itertools.pairwise(edges):
        pieces.observe(x[start:end], y[start:end])
    assert bytes_of(pieces) == bytes_of(whole)
    assert torch.equal(pieces(x), whole(x))


def test_single_samples_are_as_good_as_batches():
    whole, x, y = filled(storage="int8")
    single = plain(features=6, classes=4, capacity=40, storage="int8")
    for row, label in zip(x, y, strict=True):
        single.observe(row[None], label[None])
    assert bytes_of(single) == bytes_of(whole)


def test_normalised_features_have_no_length():
    head, x, y = filled(normalise=True)
    scaled = plain(features=6, classes=4, capacity=40, normalise=True)
    scaled.observe(x * torch.rand(300, 1).add(0.5), y)
    torch.testing.assert_close(scaled(3 * x), head(x), rtol=1e-3, atol=1e-3)
    assert head(torch.zeros(1, 6)).isfinite().all()


def test_what_waits_is_read():
    head = plain(features=6, classes=4, capacity=40, chunk_size=64)
    x, y = samples(63)
    head.observe(x, y)
    assert head.size == 0
    assert head.tokens == 63
    closed = plain(features=6, classes=4, capacity=40, chunk_size=63)
    closed.observe(x, y)
    torch.testing.assert_close(head(x), closed(x))


def test_reading_and_calibrating_write_nothing():
    head, x, y = filled()
    before = bytes_of(head)
    head(x)
    head.eval()(x)
    assert bytes_of(head) == before
    head.calibrate(x, y)
    after = head.state_dict()
    assert all(torch.equal(after[k], v) for k, v in filled()[0].state_dict().items() if k != "chosen")


def test_an_empty_memory_knows_nothing():
    head = plain(features=3, classes=5, capacity=5)
    torch.testing.assert_close(head(torch.randn(4, 3)).exp(), torch.full((4, 5), 0.2))
    head.observe(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert head.tokens == head.size == 0
    assert head(torch.empty(0, 3)).shape == (0, 5)


def test_classes_come_at_any_time():
    x, y = samples(400)
    head = plain(features=6, classes=4, capacity=40)
    head.observe(x[:1], y[:1])  # a single sample: no variance at all
    assert head(x).isfinite().all()
    assert (head(x).argmax(1) == y[0]).all()
    old = y < 3
    head.observe(x[old], y[old])
    log = head(x)
    assert log.isfinite().all()
    torch.testing.assert_close(log[:, 3].exp(), torch.full((400,), FLOOR / 4))
    torch.testing.assert_close(log.exp().sum(1), torch.ones(400))
    head.observe(x[~old], y[~old])
    assert (head(x).argmax(1) == y).float().mean() > 0.9


def test_repeated_and_constant_samples_make_no_nan():
    head = plain(features=6, classes=4, capacity=8, storage="int8")
    head.observe(torch.ones(100, 6), torch.arange(100) % 2)
    torch.testing.assert_close(head(torch.ones(1, 6)).exp()[0, :2], torch.tensor([0.5, 0.5]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_state_survives(storage):
    head, x, _ = filled(storage=storage)
    expected = head(x)
    other = plain(features=6, classes=4, capacity=40, storage=storage)
    other(x)  # a reading made before must not outlive the load
    buffer = io.BytesIO()
    torch.save(head.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    for copied in (other, copy.deepcopy(head), head.to("cpu"), copy.deepcopy(head).half().double()):
        assert bytes_of(copied) == bytes_of(head)
        assert torch.equal(copied(x), expected)
    extra, labels = samples(100, seed=3)
    head.observe(extra, labels)
    other.observe(extra, labels)
    assert bytes_of(other) == bytes_of(head)
    assert not torch.equal(other(x), expected)


def test_parents_move_and_load_it_too():
    head, x, _ = filled()
    expected = head(x)
    parent = torch.nn.Sequential(plain(features=6, classes=4, capacity=40))
    parent(x)
    parent.load_state_dict({f"0.{k}": v for k, v in head.state_dict().items()})
    assert torch.equal(parent.to(torch.float64)(x), expected)


def test_a_float16_state_of_versions_without_an_origin_is_read():
    head, x, _ = filled(storage="float16")
    head.slots.replace(head.slots.counts, head.slots.read() - head.slots.ranges)  # so that each has zero in it
    state = head.state_dict()
    assert not state["slots.ranges"].any()
    other = plain(features=6, classes=4, capacity=40, storage="float16")
    other.load_state_dict({**state, "slots.ranges": torch.zeros(4, 10, 0)})
    assert torch.equal(other(x), head(x))


@pytest.mark.parametrize(("storage", "per_entry", "per_slot"), [("float16", 2, 4), ("int8", 1, 8)])
def test_fewer_bytes(storage, per_entry, per_slot):
    exact, x, y = filled(1000)
    small, _, _ = filled(1000, storage=storage)
    assert exact.nbytes - small.nbytes == 40 * 6 * (4 - per_entry) - 40 * per_slot
    hits = [(head(x).argmax(1) == y).float().mean() for head in (exact, small)]
    assert abs(hits[0] - hits[1]) < 0.02
    counts, means = exact.slots.counts, exact.slots.read()
    small.slots.replace(counts, means)
    step = (means.amax(2) - means.amin(2)) / 255 if storage == "int8" else means.abs().amax(2) * 2**-11
    assert ((small.slots.read() - means).abs().amax(2) <= step * 1.001).all()


def test_int8_means_follow_many_samples():
    """Each of the last of 600 samples moves the mean by less than a step of int8, and still it arrives."""
    slots = ClassSlots(features=8, classes=1, options=DictionaryOptions(capacity=1), storage="int8")
    ends = torch.tensor([[0.0, 1.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2], [0.0, 1.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.1]])
    seen = torch.zeros(1, dtype=torch.int64)
    for turn in range(600):
        slots.write(ends[min(turn // 300, 1)][None], torch.zeros(1, dtype=torch.int64), seen, turn)
        seen += 1
    torch.testing.assert_close(slots.read()[0, 0], ends.mean(0), rtol=0, atol=0.02)


def test_calibration_finds_a_better_likelihood():
    head, _, _ = filled(beta=1e-3, class_weight=0.0)
    x, y = samples(300, seed=0)
    validation, labels = x[::2], y[::2]
    before = torch.nn.functional.nll_loss(head(validation), labels)
    loss = head.calibrate(validation, labels)
    assert loss < before
    torch.testing.assert_close(torch.nn.functional.nll_loss(head(validation), labels), torch.tensor(loss))
    assert head.settings.beta != 1e-3
    fresh = copy.deepcopy(head)  # has no cached reading
    torch.testing.assert_close(fresh(validation), head(validation))


def test_state_is_a_dictionary_of_one_row_a_class():
    head, _, _ = filled(320)
    state = head.state
    state.check()
    assert (state.batch, state.heads, state.capacity) == (4, 1, 10)
    assert int(state.size.sum()) == head.size
    assert torch.equal(state.counts.sum((1, 2)), state.tokens)
    used = state.counts[2, 0] > 0
    assert torch.equal(state.values[2, 0][used], torch.eye(4)[2].expand(int(used.sum()), 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be positive"),
        ({"capacity": 3}, "at least one slot per class"),
        ({"growth": "novelty"}, "unknown growth 'novelty': known: plateau"),
        ({"storage": "fp8"}, "unknown storage 'fp8': known: float32, float16, int8"),
        ({"prior": "flat"}, "unknown prior 'flat'"),
        ({"beta": 0.0}, "beta and confidence must be positive"),
        ({"shrinkage": 1.5}, "shrinkage in"),
    ],
)
def test_errors_name_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        plain(**{"features": 6, "classes": 4, "capacity": 40, **options})


def test_wrong_data_is_refused_and_not_written():
    head, x, y = filled()
    before = bytes_of(head)
    for features, targets in (
        (x[:, :5], y),
        (x, y[:-1]),
        (x, y.float()),
        (x, y + 1),
        (x, y - 1),
        (x.long(), y),
        (x.masked_fill(x == x[3, 3], torch.nan), y),
    ):
        with pytest.raises(ValueError, match="must"):
            head.observe(features, targets)
    with pytest.raises(ValueError, match="at least one sample"):
        head.calibrate(x[:0], y[:0])
    assert bytes_of(head) == before


def test_default_beta():
    assert default_beta(4) == 1.0
    assert default_beta(784) == pytest.approx(6 / 28)
