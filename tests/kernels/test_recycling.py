"""Slots that unite to make room, and values that count where slots are chosen."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import all_inputs, all_options, assert_states_close, empty_state, examples, random_inputs
from test_operator import assert_same_as_the_reference
from test_properties import assert_pieces_are_the_whole
from torch.nn.functional import cosine_similarity, normalize

from kernels import ASSIGNMENT, DictionaryOptions, ovq_attention, reference, update, write
from kernels.triton.support import unserved

weights = st.sampled_from([0.0, 0.5, 2.0])


@given(all_inputs(), all_options(growth="recycle"), weights, st.integers(0, 8), st.booleans())
@examples(60)
def test_outputs_states_and_gradients(inputs, options, weight, before, shared):
    assert_same_as_the_reference(inputs, replace(options, value_weight=weight), before, shared)


def test_long_sequences_of_many_segments():
    """Gradients come from dictionaries that are made again from snapshots and taken back union by union."""
    inputs = random_inputs(b=2, t=61, masked=0.1, seed=3)
    options = DictionaryOptions(capacity=5, chunk_size=4, growth="recycle", value_weight=1.0)
    assert_same_as_the_reference(inputs, options, 3, shared=False)


@given(all_inputs(), all_options(growth="recycle"), st.lists(st.integers(0, 20), max_size=4))
@examples(25)
def test_pieces_are_the_whole(inputs, options, cuts):
    assert_pieces_are_the_whole(inputs, options, cuts, "reference")
    assert_pieces_are_the_whole(inputs, options, cuts, "chunked")


@given(all_inputs(), all_options(growth="recycle"), st.booleans())
@examples(40)
def test_writes(inputs, options, shared):
    state = expected = empty_state(inputs, options, 1 if shared else None)
    for step in range(3):
        # Other tokens every time: those of before would be as similar to one slot as to another.
        k, v = (x * (1 + step * torch.arange(x.shape[-1])) for x in (inputs.k, inputs.v))
        before = state.clone()
        state, slots, united = write(state, k, v, options, inputs.mask)
        k, v = (torch.where(inputs.mask[..., None, None], x, 0.0) for x in (k, v))
        assert all(torch.equal(x, getattr(before, name)) for name, x in before.state_dict().items())
        expected, expected_slots, expected_united = reference.write(expected, k, v, options, inputs.mask)
        assert torch.equal(slots, expected_slots)
        assert torch.equal(united, expected_united)
        assert_states_close(state, expected)


@pytest.mark.parametrize("assignment", ASSIGNMENT)
def test_sums_are_conserved(assignment):
    """Whatever unites: counts add up to the tokens, and counts times means to the sums of keys and of values."""
    inputs = random_inputs(b=3, t=200, dk=6, dv=4)
    options = DictionaryOptions(capacity=16, chunk_size=8, growth="recycle", value_weight=1.0, assignment=assignment)
    state, unions = empty_state(inputs, options), 0
    for start in range(0, 200, 8):
        part = inputs.cut(start, start + 8)
        state, _, united = write(state, part.k, part.v, options)
        unions += int((united >= 0).sum())
    assert unions > 100
    assert torch.equal(state.counts.sum(-1), torch.full((3, 2), 200))
    assert bool((state.counts > 0).all())
    for means, tokens in ((state.keys, normalize(inputs.k, dim=-1)), (state.values, inputs.v)):
        torch.testing.assert_close((means * state.counts[..., None]).sum(2), tokens.sum(1))


def clusters(count, each, dim=16, spread=0.02):
    """Keys and values `[1, count * each, 1, dim]` of tight clusters, one after the other."""
    g = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(count, dim, generator=g, dtype=torch.float64), dim=-1)
    of = torch.arange(count).repeat_interleave(each)
    keys = centres[of] + spread * torch.randn(len(of), dim, generator=g, dtype=torch.float64)
    return keys[None, :, None], centres.flip(0)[of][None, :, None]


def test_every_cluster_keeps_a_slot_of_its_own():
    """Half as many clusters as slots, one after the other: some of them share their slots with `plateau`."""
    k, v = clusters(16, 20)

    def worst(growth):
        options = DictionaryOptions(capacity=32, chunk_size=10, growth=growth)
        _, state = ovq_attention(k, k, v, torch.ones(1).double(), options, output_final_state=True)
        found = k[0, :, 0] @ state.keys[0, 0].T
        return float((state.values[0, 0][found.argmax(-1)] - v[0, :, 0]).norm(dim=-1).max())

    assert worst("recycle") < 1e-6
    assert worst("plateau") > 0.1


def test_the_two_nearest_unite_for_the_token_that_is_new():
    e = torch.eye(4, dtype=torch.float64)
    near = normalize(e[0] + 0.1 * e[1], dim=-1)
    k = torch.stack([e[0], near, e[1]])[None, :, None]
    options = DictionaryOptions(capacity=3, chunk_size=1, growth="recycle")
    state = empty_state(random_inputs(b=1, h=1), options)
    state, slots = update(state.replace(keys=state.keys[..., :4]), k, torch.zeros(1, 3, 1, 3).double(), options)
    assert slots.flatten().tolist() == [0, 1, 2]
    state, slots, united = write(state, e[2].view(1, 1, 1, 4), torch.zeros(1, 1, 1, 3).double(), options)
    assert (slots.item(), united.item()) == (1, 0)
    assert state.counts.flatten().tolist() == [2, 1, 1]
    torch.testing.assert_close(state.keys[0, 0, :2], torch.stack([(e[0] + near) / 2, e[2]]))
    # One that is more like a slot than any two slots are like each other makes no room.
    state, slots, united = write(
        state, (e[2] + 0.01 * e[3]).view(1, 1, 1, 4), torch.zeros(1, 1, 1, 3).double(), options
    )
    assert (slots.item(), united.item()) == (1, -1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 3.0])
def test_values_count_by_their_weight(weight):
    """A full dictionary: each token joins the slot of largest `k.mu + w cos(v, nu)`, by another formula."""
    first, then = random_inputs(b=1, t=6, h=1, seed=1), random_inputs(b=1, t=9, h=1, seed=2)
    options = DictionaryOptions(capacity=6, growth="all", value_weight=weight)
    state, _ = update(empty_state(first, options), first.k, first.v, options)
    _, slots = update(state, then.k, then.v, options)
    for j, slot in enumerate(slots[0, :, 0].tolist()):
        likeness = cosine_similarity(then.k[0, j, 0], first.k[0, :, 0]) + weight * cosine_similarity(
            then.v[0, j, 0], first.v[0, :, 0]
        )
        assert slot == int(likeness.argmax())


def test_equal_keys_with_different_values_have_slots_of_their_own():
    k = torch.ones(1, 8, 1, 4, dtype=torch.float64)
    v = torch.eye(2, dtype=torch.float64).repeat(4, 2)[None, :, None]  # two values in turn
    for weight, expected in ((0.0, 1), (1.0, 2)):
        options = DictionaryOptions(capacity=8, growth="novelty", novelty_threshold=0.9, value_weight=weight)
        state = empty_state(random_inputs(b=1, h=1, dv=4), options)
        for start, stop in itertools.pairwise((0, 4, 8)):
            state, _ = update(state, k[:, start:stop], v[:, start:stop], options)
        assert int(state.size) == expected


@pytest.mark.parametrize(
    ("fields", "line"),
    [({"growth": "recycle"}, "growth 'recycle' unites slots"), ({"value_weight": 0.5}, "value_weight 0.5 compares")],
)
def test_kernels_refuse_in_one_line(fields, line):
    x = random_inputs(dtype=torch.float32)
    assert (unserved(x.q, x.k, x.v, DictionaryOptions(capacity=4, **fields)) or "").startswith(line)
    with pytest.raises(ValueError, match=f"triton.* cannot serve this call: {line}.*'chunked' and 'reference' can"):
        x.run(DictionaryOptions(capacity=4, **fields), "triton")


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match=r"value_weight must lie in \[0, "):
        DictionaryOptions(capacity=4, value_weight=weight)
