"""Operations on whole dictionaries, against dictionaries that never saw, or saw all, and against brute force."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_ovq.mixers import OVQAttention, PersistentDictionary
from cl_ovq.mixers.dictionary import halve
from cl_ovq.mixers.operations import forget, merge, resize
from kernels import DictionaryOptions, DictionaryState

HEADS, DIM = 2, 4


def made(capacity=12, *, sums=True, half_life=None, **options):
    return PersistentDictionary(
        heads=HEADS,
        key_dim=DIM,
        value_dim=DIM,
        options=DictionaryOptions(capacity=capacity, chunk_size=8, **options),
        sums=sums,
        half_life=half_life,
    )


def write(dictionary, task, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, tokens, HEADS, DIM, generator=generator)
    dictionary.begin_task(task)
    dictionary.write([(k, v, torch.rand(1, tokens, generator=generator) < 0.9)])
    return k[0], v[0], dictionary.last_written[1]


def learned(tasks, seed=0, **options):
    """A dictionary after these tasks, and what each wrote: keys, values and slots `[m, ...]`."""
    dictionary, seen = made(**options), {}
    for step, task in enumerate(tasks):
        k, v, slots = write(dictionary, task, 7 + task, seed + step)
        seen.setdefault(task, []).append((torch.nn.functional.normalize(k, dim=-1), v, slots))
    return dictionary, {task: [torch.cat(x) for x in zip(*parts, strict=True)] for task, parts in seen.items()}


def check_front(dictionary):
    """Slots in use are the first, and what is empty is zero."""
    state = dictionary.state
    state.check()
    used = state.counts > 0
    assert torch.equal(used, torch.arange(state.capacity) < state.size[..., None])
    assert not state.keys[~used].any()
    assert not state.values[~used].any()
    assert torch.equal(dictionary.written.sum(0), state.counts[0])


@settings(max_examples=25, deadline=None)
@given(tasks=st.lists(st.integers(0, 2), min_size=1, max_size=8), gone=st.integers(0, 2), seed=st.integers(0, 999))
def test_forgetting_leaves_the_means_of_the_others_tokens(tasks, gone, seed):
    dictionary, seen = learned([*tasks, gone], seed)
    forget(dictionary, gone)
    check_front(dictionary)
    state = dictionary.state
    for head in range(HEADS):
        expected = []
        for slot in range(state.capacity):
            kept = [(k[:, head], v[:, head], slots[:, head] == slot) for t, (k, v, slots) in seen.items() if t != gone]
            keys = torch.cat([k[hit] for k, _, hit in kept]) if kept else torch.zeros(0, DIM)
            values = torch.cat([v[hit] for _, v, hit in kept]) if kept else torch.zeros(0, DIM)
            if len(keys):
                expected.append((len(keys), keys.mean(0), values.mean(0)))
        assert state.counts[0, head, : len(expected)].tolist() == [n for n, _, _ in expected]
        assert int(state.size[0, head]) == len(expected)
        for slot, (_, key, value) in enumerate(expected):
            torch.testing.assert_close(state.keys[0, head, slot], key, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(state.values[0, head, slot], value, atol=1e-5, rtol=1e-5)


def test_a_task_that_came_last_and_shared_nothing_is_as_if_it_had_never_been():
    never, _ = learned([0, 1], growth="all", capacity=64)
    dictionary, _ = learned([0, 1, 2], growth="all", capacity=64)  # every token has a slot of its own
    forget(dictionary, 2)
    for name, tensor in never.state.state_dict().items():
        torch.testing.assert_close(getattr(dictionary, name), tensor)


def test_what_cannot_be_forgotten_is_said():
    with pytest.raises(ValueError, match="sums=True"):
        forget(learned([0], sums=False)[0], 0)
    with pytest.raises(ValueError, match=r"task must be in 0 \.\. 1, got 2"):
        forget(learned([0, 1])[0], 2)
    for options in ({"half_life": 4}, {"learning_rate": "floored"}):
        with pytest.raises(ValueError, match="adaptive learning rate"):
            made(**options)


@settings(max_examples=20, deadline=None)
@given(a=st.lists(st.integers(0, 2), max_size=5), b=st.lists(st.integers(0, 3), max_size=5), sums=st.booleans())
def test_merging_conserves_counts_sums_and_write_logs(a, b, sums):
    first, _ = learned(a, 1, sums=sums, capacity=6)
    second, _ = learned(b, 50, sums=sums, capacity=6)
    before = [copy.deepcopy(d) for d in (first, second)]
    merge(first, second)
    check_front(first)
    for read in (
        lambda d: d.state.counts.sum(-1),
        lambda d: (d.state.counts[..., None] * d.state.keys).sum(-2),
        lambda d: (d.state.counts[..., None] * d.state.values).sum(-2),
        lambda d: d.written.sum(-1).sum(0),
        lambda d: d.writes,
    ):
        torch.testing.assert_close(read(first), read(before[0]) + read(before[1]), atol=1e-4, rtol=1e-4)
    for task in range(len(first.written)):
        parts = [d.written[task].sum(-1) for d in before if task < len(d.written)]
        assert torch.equal(first.written[task].sum(-1), sum(parts))
    if sums:
        counts = first.written.sum(0).clamp(min=1)[..., None]
        torch.testing.assert_close(first.key_sums.sum(0) / counts, first.state.keys[0], atol=1e-5, rtol=1e-5)


def test_merged_where_all_fits_is_the_union():
    first, _ = learned([0], 1, growth="all", capacity=40)
    second, _ = learned([1], 2, growth="all", capacity=40)
    union = torch.cat(
        [first.state.keys[0, 0, : first.state.size[0, 0]], second.state.keys[0, 0, : second.state.size[0, 0]]]
    )
    merge(first, second)
    torch.testing.assert_close(first.state.keys[0, 0, : len(union)], union)
    forget(first, 1)  # what came from the other can be forgotten
    torch.testing.assert_close(
        first.state.keys[0, 0, : first.state.size[0, 0]],
        learned([0], 1, growth="all", capacity=40)[0].state.keys[0, 0, : first.state.size[0, 0]],
    )


def layer_of(capacity):
    torch.manual_seed(0)
    options = DictionaryOptions(capacity=capacity, chunk_size=8)
    layer = OVQAttention(width=8, heads=HEADS, options=options, persistent=True, dictionary_weight=None)
    for seed in range(4):
        with layer.dictionary.recording():
            layer(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed)))
        layer.dictionary.write()
    return layer


def test_a_larger_capacity_changes_no_answer_and_a_smaller_one_conserves_the_tokens():
    layer, x = layer_of(12).eval(), torch.randn(2, 5, 8)
    before = layer(x)[0]
    resize(layer, 30)
    assert layer.dictionary.state.capacity == 30
    torch.testing.assert_close(layer(x)[0], before)
    resize(layer, 5)
    check_front(layer.dictionary)
    assert layer.dictionary.state.size.max() <= 5
    assert (layer.dictionary.state.counts.sum(-1) == 60).all()
    assert layer(x)[0].isfinite().all()
    layer.train()
    with layer.dictionary.recording():
        layer(x)
    layer.dictionary.write()
    assert (layer.dictionary.state.counts.sum(-1) == 70).all()


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
    before=st.integers(0, 1000),
    written=st.integers(0, 500),
    half_life=st.integers(1, 300),
)
def test_counts_are_halved_once_for_each_half_life_that_passes(counts, before, written, half_life):
    state = DictionaryState.empty((1, 1, len(counts), DIM, DIM)).replace(
        counts=torch.tensor(counts)[None, None], tokens=torch.tensor([before])
    )
    expected = list(counts)
    for token in range(before + 1, before + written + 1):
        if token % half_life == 0:
            expected = [-(-count // 2) for count in expected]
    assert halve(state, torch.tensor(written), half_life).counts[0, 0].tolist() == expected


def test_a_half_life_makes_means_follow_new_tokens_and_loses_no_slot():
    plain, ageing = made(sums=False), made(sums=False, half_life=10)
    for dictionary in (plain, ageing):
        for step in range(30):
            write(dictionary, 0, 8, step)
    assert torch.equal(plain.state.size, ageing.state.size)
    assert plain.state.counts.sum() > 4 * ageing.state.counts.sum()
    assert (ageing.state.counts[ageing.state.counts > 0] >= 1).all()
    old = {d: d.state.keys.clone() for d in (plain, ageing)}
    for dictionary in (plain, ageing):
        write(dictionary, 0, 8, 99)
    moved = [(d.state.keys - old[d]).norm() for d in (plain, ageing)]
    assert moved[1] > 2 * moved[0]
