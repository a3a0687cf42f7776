"""Owners, age, drift and error of entries, against counts by hand and in loops."""

import numpy as np
import pytest
import torch

from cl_ovq.evaluation.slot_statistics import average, count, quantization_error
from cl_ovq.mixers import PersistentDictionary
from kernels import DictionaryOptions

HEADS, CAPACITY, DIM = 2, 5, 4


def write(dictionary, seed, tokens=12):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(1, tokens, HEADS, DIM, generator=generator) for _ in range(2))
    dictionary.write([(k, v, torch.ones(1, tokens, dtype=torch.bool))])
    return k[0]


@pytest.fixture
def dictionary():
    options = DictionaryOptions(capacity=CAPACITY, chunk_size=4)
    return PersistentDictionary(heads=HEADS, key_dim=DIM, value_dim=DIM, options=options)


def test_slot_statistics_against_loops(dictionary):
    for task in range(3):
        dictionary.begin_task(task)
        start = (dictionary.state.counts[0], dictionary.state.keys[0]) if task else None
        for repeat in range(2):
            write(dictionary, seed=10 * task + repeat, tokens=2 + 3 * repeat)
    found = count(dictionary, 3, start)

    written, last = dictionary.written.numpy(), dictionary.last_write.numpy()
    keys = dictionary.state.keys[0].numpy()
    per_head = {name: [] for name in ("dead", "owned", "shared", "age", "owner")}
    moved = []
    for h in range(HEADS):
        used = [i for i in range(CAPACITY) if written[:, h, i].sum() > 0]
        tokens = [written[:, h, i] for i in used]
        per_head["dead"].append(np.mean([t[2] == 0 for t in tokens]))
        per_head["owned"].append(np.mean([max(t) >= 0.9 * sum(t) for t in tokens]))
        per_head["shared"].append(np.mean([max(t) < 0.9 * sum(t) for t in tokens]))
        per_head["age"].append(np.mean([6 - last[h, i] for i in used]))
        per_head["owner"].append([sum(int(np.argmax(t)) == task for t in tokens) for task in range(3)])
        for i in range(CAPACITY):
            if start[0][h, i] > 0:
                moved.append(np.linalg.norm(keys[h, i] - start[1][h, i].numpy()))
    for name in ("dead", "owned", "shared", "age"):
        assert getattr(found, name) == pytest.approx(np.mean(per_head[name])), name
    assert found.owners == pytest.approx(np.mean(per_head["owner"], axis=0))
    assert found.drift == pytest.approx(np.mean(moved), rel=1e-5)
    assert found.owned + found.shared == pytest.approx(1)
    assert sum(found.owners) == pytest.approx(float(dictionary.state.size.double().mean()))


def test_the_first_experience_has_no_drift(dictionary):
    write(dictionary, 0)
    assert count(dictionary, 1, None).drift is None


def test_quantization_error_is_the_mean_distance_to_the_own_slot(dictionary):
    assert quantization_error(dictionary) is None
    write(dictionary, 0)
    k = write(dictionary, 1).numpy()
    slots, means = dictionary.last_written[1].numpy(), dictionary.state.keys[0].numpy()
    distances = [
        np.sum((k[t, h] / np.linalg.norm(k[t, h]) - means[h, slots[t, h]]) ** 2)
        for t in range(len(k))
        for h in range(HEADS)
    ]
    assert quantization_error(dictionary) == pytest.approx(np.mean(distances), rel=1e-5)


def test_slots_that_hold_one_token_each_have_no_error():
    options = DictionaryOptions(capacity=16, chunk_size=4, growth="all")
    dictionary = PersistentDictionary(heads=HEADS, key_dim=DIM, value_dim=DIM, options=options)
    write(dictionary, 0)
    assert quantization_error(dictionary) == pytest.approx(0, abs=1e-12)
    found = count(dictionary, 1, None)
    assert (found.dead, found.owned, found.age, found.owners) == (0, 1, 0, [12.0])


def test_layers_are_averaged(dictionary):
    write(dictionary, 0)
    one = count(dictionary, 1, None)
    write(dictionary, 1)
    two = count(dictionary, 1, None)
    both = average([one, two])
    assert both.age == pytest.approx((one.age + two.age) / 2)
    assert both.owners == pytest.approx([(one.owners[0] + two.owners[0]) / 2])
    assert both.drift is None
    assert both.experience == 1
