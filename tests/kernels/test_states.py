"""The state as a value, whole-dictionary operations, and what options may be."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import all_inputs, all_options, assert_states_close, empty_state, examples, random_inputs

import kernels
from kernels import GROWTH, DictionaryOptions, DictionaryState, merge, resize, update
from kernels.growth import target_size


def written(b=2, n=8, t=20, seed=0, dtype=torch.float32, **options):
    """A state that one update of `t` tokens wrote, and its options."""
    options = DictionaryOptions(capacity=n, **options)
    inputs = random_inputs(b=b, t=t, seed=seed, dtype=dtype)
    return update(empty_state(inputs, options), inputs.k, inputs.v, options)[0], options


def weighted_mean(means, counts):
    return (means.double() * counts[..., None]).sum(2)


def test_state_dict_brings_back_the_same_bits():
    _, state = random_inputs(b=2, t=19).run(DictionaryOptions(capacity=4, chunk_size=8), "chunked")
    again = DictionaryState.from_state_dict(state.state_dict())
    assert_states_close(again, state, rtol=0, atol=0)
    assert again.pending == 3
    assert (again.batch, again.heads, again.capacity) == (2, 2, 4)


def test_state_dict_that_is_none():
    tensors = DictionaryState.empty((1, 2, 4, 3, 5)).state_dict()
    with pytest.raises(ValueError, match=r"missing \['size'\], unknown \['sizes'\]"):
        DictionaryState.from_state_dict({("sizes" if k == "size" else k): t for k, t in tensors.items()})
    with pytest.raises(ValueError, match=r"values must have shape \[1, 2, 4, 5\]|values must have shape"):
        DictionaryState.from_state_dict(tensors | {"values": torch.zeros(1, 2, 5, 5)})
    with pytest.raises(ValueError, match="counts must be int64"):
        DictionaryState.from_state_dict(tensors | {"counts": tensors["counts"].float()})


def test_bytes():
    """Two fp32 means of 3 and 5, an int64 count per slot; a size per head; a token count per row."""
    assert DictionaryState.empty((2, 3, 4, 3, 5)).nbytes == 2 * 3 * 4 * (4 * (3 + 5) + 8) + 2 * 3 * 8 + 2 * 8
    assert DictionaryState.empty((1, 1, 1, 1, 1), torch.bfloat16).keys.dtype == torch.float32
    assert DictionaryState.empty((1, 1, 1, 1, 1), torch.float64).keys.dtype == torch.float64


def test_to_another_dtype_leaves_counts_alone():
    state = written()[0].to(dtype=torch.float64)
    assert state.keys.dtype == state.pending_values.dtype == torch.float64
    assert state.counts.dtype == torch.int64
    assert state.pending_mask.dtype == torch.bool
    assert state.to(device="meta").keys.device.type == "meta"


def test_expand_reset_clone_detach():
    state = written(b=1)[0]
    rows = state.expand(3)
    assert rows.batch == 3
    assert rows.keys.data_ptr() == state.keys.data_ptr()
    with pytest.raises(ValueError, match="this one has 3"):
        rows.expand(2)
    assert state.clone().keys.data_ptr() != state.keys.data_ptr()
    assert_states_close(state.reset(), DictionaryState.empty((1, 2, 8, 4, 3)), rtol=0, atol=0)
    learned = state.replace(keys=state.keys.requires_grad_())
    assert not learned.detach().keys.requires_grad


def test_a_reset_state_starts_anew():
    options = DictionaryOptions(capacity=4, chunk_size=4)
    inputs = random_inputs(t=18)
    o, used = inputs.run(options, "chunked")
    again, _ = inputs.run(options, "chunked", used.reset())
    assert torch.equal(again, o)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 24))
@examples()
def test_merge_conserves_tokens_and_means(ta, tb, capacity):
    a, _ = written(n=8, t=ta, seed=1, growth="all")
    b, _ = written(n=12, t=tb, seed=2, growth="all")
    both = merge(a, b, capacity)
    assert both.capacity == capacity
    assert torch.equal(both.size, (a.size + b.size).clamp(max=capacity))
    assert torch.equal((both.counts > 0).sum(-1), both.size)
    assert torch.equal((both.counts > 0).long().cumsum(-1).amax(-1), both.size)
    assert torch.equal(both.counts.sum(-1), a.counts.sum(-1) + b.counts.sum(-1))
    assert torch.equal(both.tokens, a.tokens + b.tokens)
    for name in ("keys", "values"):
        expected = weighted_mean(getattr(a, name), a.counts) + weighted_mean(getattr(b, name), b.counts)
        torch.testing.assert_close(weighted_mean(getattr(both, name), both.counts), expected, atol=1e-5, rtol=1e-5)
    for i in range(both.size.numel()):  # slots 0 to size - 1 are in use, the others are empty
        used = int(both.size.flatten()[i])
        assert (both.counts.flatten(0, 1)[i, :used] > 0).all()
        assert not both.keys.flatten(0, 1)[i, used:].any()


def test_merge_that_fits_is_the_mixture_of_both():
    """Reading the merged dictionary is reading both: the same softmax over the slots of one and the other."""
    a, options = written(b=1, t=9, seed=1, dtype=torch.float64, growth="all", n=16)
    b, _ = written(b=1, t=6, seed=2, dtype=torch.float64, growth="all", n=16)
    both = merge(a, b)
    inputs = random_inputs(t=1)
    o, _ = inputs.run(options, "chunked", both)
    q, k = (torch.nn.functional.normalize(x[0, 0], dim=-1) for x in (inputs.q, inputs.k))
    for head in range(2):
        keys = torch.cat([a.keys[0, head, :9], b.keys[0, head, :6], k[head][None]])
        values = torch.cat([a.values[0, head, :9], b.values[0, head, :6], inputs.v[0, 0, head][None]])
        expected = torch.softmax(inputs.beta[head] * keys @ q[head], 0) @ values
        torch.testing.assert_close(o[0, 0, head], expected)


def test_merge_unites_what_is_alike():
    """Two workers that learned the same four clusters: four slots, each with both counts."""
    g = torch.Generator().manual_seed(0)
    centres = torch.eye(4)[None, None]
    state = DictionaryState.empty((1, 1, 4, 4, 2)).replace(
        counts=torch.tensor([[[5, 6, 7, 8]]]),
        keys=centres + 0.01 * torch.randn(1, 1, 4, 4, generator=g),
        values=torch.randn(1, 1, 4, 2, generator=g),
        size=torch.tensor([[4]]),
        tokens=torch.tensor([26]),
    )
    order = torch.tensor([2, 0, 3, 1])
    other = state.replace(counts=state.counts[..., order], keys=centres[:, :, order], values=state.values[:, :, order])
    both = merge(state, other)
    assert both.counts.tolist() == [[[10, 12, 14, 16]]]
    torch.testing.assert_close(both.keys, centres.expand_as(both.keys), atol=0.02, rtol=0)
    torch.testing.assert_close(both.values, state.values)


def test_merge_of_equal_slots_ends():
    """Every distance ties at zero."""
    state, _ = written(b=1, n=16, t=16, growth="all")
    state = state.replace(keys=state.keys[:, :, :1].expand_as(state.keys))
    assert merge(state, state, 3).counts.sum(-1).tolist() == [[32, 32]]


def test_merge_needs_states_that_fit():
    a, _ = written()
    with pytest.raises(ValueError, match="rows, heads and sizes must be equal"):
        merge(a, written(b=1)[0])
    _, pending = random_inputs(b=2, t=3).run(DictionaryOptions(capacity=8, chunk_size=4), "chunked")
    with pytest.raises(ValueError, match="3 pending tokens"):
        merge(a, pending)
    with pytest.raises(ValueError, match="3 pending tokens"):
        update(pending, torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 3), DictionaryOptions(capacity=8))


@given(all_inputs(), all_options(), st.integers(0, 5))
@examples()
def test_a_larger_dictionary_reads_the_same(inputs, options, more):
    """And goes on growing; a dictionary cut to the slots in use reads the same too."""
    with torch.no_grad():
        _, state = random_inputs(inputs.q.shape[0], 11, *inputs.k.shape[2:], inputs.v.shape[-1]).run(options, "chunked")
    short = inputs.cut(0, min(inputs.q.shape[1], options.chunk_size - state.pending))  # no update between
    expected, _ = short.run(options, "chunked", state)
    for capacity in (options.capacity + more, max(1, int(state.size.max()))):
        changed = dataclasses.replace(options, capacity=capacity)
        o, final = short.run(changed, "chunked", resize(state, capacity))
        torch.testing.assert_close(o, expected)
        longer, final = inputs.run(changed, "chunked", resize(state, capacity))
        assert longer.isfinite().all()
        assert (final.size <= capacity).all()
        assert (final.size >= resize(state, capacity).size).all()


def test_a_smaller_dictionary_conserves_tokens_and_keeps_pending_ones():
    _, state = random_inputs(b=2, t=27).run(DictionaryOptions(capacity=12, chunk_size=8), "chunked")
    small = resize(state, 3)
    assert small.size.tolist() == [[3, 3], [3, 3]]
    assert torch.equal(small.counts.sum(-1), state.counts.sum(-1))
    torch.testing.assert_close(weighted_mean(small.keys, small.counts), weighted_mean(state.keys, state.counts))
    assert small.pending == 3
    with pytest.raises(ValueError, match="capacity must be positive"):
        resize(state, 0)
    # It has more slots than the schedule wants by now: no new ones, none taken away.
    o, after = random_inputs(b=2, t=5).run(DictionaryOptions(capacity=3, chunk_size=8), "chunked", small)
    assert o.isfinite().all()
    assert after.size.tolist() == [[3, 3], [3, 3]]


def test_resize_unites_the_cheapest_pairs():
    """Of three light slots close by and two heavy ones, the light ones are united first."""
    angles = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.1])
    state = DictionaryState.empty((1, 1, 5, 2, 1)).replace(
        counts=torch.tensor([[[1, 1, 1, 1000, 1000]]]),
        keys=torch.stack([angles.cos(), angles.sin()], -1)[None, None],
        size=torch.tensor([[5]]),
        tokens=torch.tensor([2003]),
    )
    assert sorted(resize(state, 3).counts.flatten().tolist()) == [3, 1000, 1000]


@pytest.mark.parametrize("growth", GROWTH)
def test_target_size_is_between_one_and_the_capacity_and_never_falls(growth):
    options = DictionaryOptions(capacity=50, growth=growth, growth_rate=0.01)
    tokens = torch.tensor([0, 1, 2, 3, 10, 100, 1000, 10**6, 10**9, 10**12])
    size = target_size(tokens, options)
    assert size[0] == 0
    assert (size[1:] >= 1).all()
    assert (size <= 50).all()
    assert (size.diff() >= 0).all()
    assert torch.equal(size, torch.cat([target_size(t, options)[None] for t in tokens]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("capacity", 0, "capacity must be a positive integer, got 0"),
        ("capacity", 2.5, "capacity must be a positive integer, got 2.5"),
        ("chunk_size", -1, "chunk_size must be a positive integer, got -1"),
        ("growth", "platau", "unknown growth 'platau': did you mean 'plateau'.*known: plateau, linear, all"),
        ("seeds", "nearest", "unknown seeds 'nearest'.*known: spread, random, farthest, kmeans"),
        ("assignment", "new", "unknown assignment 'new'.*known: old, all"),
        ("learning_rate", "adaptiv", "unknown learning_rate 'adaptiv': did you mean 'adaptive'"),
        ("read_out", "row", "unknown read_out 'row': did you mean 'raw'"),
        ("growth_rate", 0.0, "growth_rate must be positive.*got 0.0"),
        ("concentration", -1.0, "concentration must be positive, got -1.0"),
        ("novelty_threshold", 1.5, r"novelty_threshold .* \[-1, 1\], got 1.5"),
        ("rate", 0.0, r"rate must lie in \(0, 1\], got 0.0"),
        ("rate", float("nan"), r"rate must lie in \(0, 1\], got nan"),
        ("seed", -1, "seed must be an integer"),
        ("seed", 2**32, "seed must be an integer"),
        ("capacity", True, "capacity must be a positive integer, got True"),
        ("query_norm", 1, "query_norm must be True or False, got 1"),
    ],
)
def test_options_name_the_field_the_value_and_the_choices(field, value, message):
    with pytest.raises(ValueError, match=message):
        DictionaryOptions(**{"capacity": 4, field: value})


def test_integers_of_numpy_are_integers():
    options = DictionaryOptions(capacity=np.int64(8), chunk_size=np.int32(4), seed=np.uint8(3))
    assert options == DictionaryOptions(capacity=8, chunk_size=4, seed=3)
    assert options.text == DictionaryOptions(capacity=8, chunk_size=4, seed=3).text


def test_the_package_offers_what_it_promises():
    assert kernels.__project__ == "cl-ovq"
    assert all(hasattr(kernels, name) for name in kernels.__all__)
    options = DictionaryOptions(capacity=7, growth="dirichlet", rate=0.1)
    assert kernels.options.options_of(options.text) == options
