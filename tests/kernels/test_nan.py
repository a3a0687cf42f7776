"""A NaN reaches exactly the outputs that causally see it: none may hide, none may spread further."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import (
    IMPLEMENTATIONS,
    ON_GPU,
    all_inputs,
    all_options,
    assert_states_close,
    dtype_of,
    empty_state,
    examples,
    random_inputs,
    served,
    tolerance_of,
)

from kernels import READ_OUTS, SEEDS, DictionaryOptions, DictionaryState, reference, resize, update

T, LENGTH = 14, 4
CASES = [
    pytest.param(
        name, position, read_out, value, implementation, id=f"{name}{position}-{read_out}-{value}-{implementation}"
    )
    for name in "qkv"
    for position in (0, 5, 7, 13)
    for read_out in READ_OUTS
    for value in (torch.nan, torch.inf)
    for implementation in IMPLEMENTATIONS
    # The interpreter takes seconds for each.
    if implementation != "triton" or ON_GPU or (position, read_out) == (5, "raw" if value == torch.inf else "gmr")
]


def outputs_with(inputs, options, implementation, state=None):
    return inputs.run(options, implementation, state)[0]


def poisoned(inputs, name, where, value=torch.nan):
    """The inputs with one number of q, k or v replaced; `where` is row, position, head, feature."""
    changed = getattr(inputs, name).clone()
    changed[where] = value
    return replace(inputs, **{name: changed})


@pytest.mark.parametrize(("name", "position", "read_out", "value", "implementation"), CASES)
def test_it_reaches_the_outputs_that_see_it_and_no_others(name, position, read_out, value, implementation):
    """Of queries: its own output. Of keys: all from it on. Of values: that feature of all from it on."""
    options = DictionaryOptions(capacity=5, chunk_size=LENGTH, read_out=read_out)
    inputs = random_inputs(b=2, t=T, h=2, group=2, dtype=dtype_of(implementation))
    expected = outputs_with(inputs, options, implementation)
    o = outputs_with(poisoned(inputs, name, (1, position, 1, 2), value), options, implementation)
    reached = torch.zeros_like(o, dtype=torch.bool)  # [B, T, H, Dv]; query heads 2 and 3 read head 1
    if name == "q":
        reached[1, position, 1] = True
    elif name == "k":
        reached[1, position:, 2:] = True
    else:
        reached[1, position:, 2:, 2] = True
    assert torch.equal(~o.isfinite(), reached)
    torch.testing.assert_close(o[~reached], expected[~reached])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["k", "v"])
def test_it_stays_in_its_row_and_in_its_order_where_rows_share_a_dictionary(name, implementation):
    """Short chunks on one dictionary, which are read in one product."""
    options = DictionaryOptions(capacity=8, chunk_size=16)
    inputs = random_inputs(b=3, t=6, h=2, dtype=dtype_of(implementation))
    _, state = random_inputs(t=16, h=2, dtype=dtype_of(implementation), seed=1).run(options, implementation)
    assert state.size.min() > 1
    assert state.pending == 0
    expected = outputs_with(inputs, options, implementation, state)
    broken = poisoned(poisoned(inputs, name, (1, 2, 0)), name, (2, 4, 0))
    o = outputs_with(broken, options, implementation, state)
    reached = torch.zeros_like(o, dtype=torch.bool)
    reached[1, 2:, 0] = reached[2, 4:, 0] = True
    assert torch.equal(~o.isfinite(), reached)
    torch.testing.assert_close(o[~reached], expected[~reached])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_pending_token_carries_it_on(name, implementation):
    options = DictionaryOptions(capacity=5, chunk_size=LENGTH)
    inputs = poisoned(random_inputs(t=T, h=1, dtype=dtype_of(implementation)), name, (0, 5, 0))
    whole = outputs_with(inputs, options, implementation)
    first, state = inputs.cut(0, 6).run(options, implementation)
    assert torch.isnan(state.pending_keys if name == "k" else state.pending_values)[0, 1].all()
    pieces = torch.cat([first, outputs_with(inputs.cut(6, T), options, implementation, state)], 1)
    torch.testing.assert_close(pieces, whole, equal_nan=True)


def assert_the_same_with_nan(inputs, options, data, implementations):
    """Outputs, and the state: what is NaN, in which slot, and every number that is not."""
    b, t, h, _ = inputs.k.shape
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from("qkv"))
        where = tuple(data.draw(st.integers(0, size - 1)) for size in (b, t, h))
        inputs = poisoned(inputs, name, where)
    (expected, wanted), *found = (inputs.run(options, name) for name in implementations)
    tolerance = tolerance_of(implementations[-1])
    for o, state in found:
        torch.testing.assert_close(o, expected, equal_nan=True, **tolerance)
        assert_states_close(state, wanted, equal_nan=True, **tolerance)


@given(inputs=all_inputs(), options=all_options(), data=st.data())
@examples(60)
def test_implementations_agree_with_nan_anywhere(inputs, options, data):
    assert_the_same_with_nan(inputs, options, data, ("reference", "chunked"))


@given(inputs=all_inputs(torch.float32), options=all_options(), data=st.data())
@examples(30 if ON_GPU else 3, shrink=False)
def test_kernels_agree_with_nan_anywhere(inputs, options, data):
    assert_the_same_with_nan(inputs, served(options, "triton"), data, ("chunked", "triton"))


@given(inputs=all_inputs(), options=all_options(), data=st.data())
@examples(40)
def test_updates_agree_on_the_slot_of_a_key_of_nan(inputs, options, data):
    """Also where a slot's mean is NaN already."""
    b, t, h, _ = inputs.k.shape
    history = poisoned(inputs, "k", (0, data.draw(st.integers(0, t - 1)), 0)).on_tokens(lambda x: x.roll(1, 1))
    state, _ = update(empty_state(inputs, options), history.k, history.v, options, history.mask)
    inputs = poisoned(inputs, "k", tuple(data.draw(st.integers(0, size - 1)) for size in (b, t, h)))
    expected, expected_slots = reference.update(state, inputs.k, inputs.v, options, inputs.mask)
    new, slots = update(state, inputs.k, inputs.v, options, inputs.mask)
    assert torch.equal(slots, expected_slots)
    assert_states_close(new, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["k", "v"])
def test_a_batch_write_of_nan_by_the_kernels(name):
    """Seeds and members, in tiles that programs write side by side; k of NaN in the second write goes to slot 0."""
    device = "cuda" if ON_GPU else "cpu"
    options = DictionaryOptions(capacity=12)
    inputs = random_inputs(b=5, t=9, h=1, dtype=torch.float32)
    state = wanted = empty_state(inputs, options, 1)
    for position in (3, 40):
        broken = poisoned(inputs, name, (position // 9, position % 9, 0, 1))
        wanted, expected = update(wanted, broken.k, broken.v, options, implementation="chunked")
        new, slots = update(
            state.to(device), broken.k.to(device), broken.v.to(device), options, implementation="triton"
        )
        state = new.to("cpu")
        assert torch.equal(slots.cpu(), expected)
        assert_states_close(state, wanted, equal_nan=True, **tolerance_of("triton"))


@pytest.mark.parametrize("write", [update, reference.update])
@pytest.mark.parametrize("seeds", [seeds for seeds in SEEDS if seeds != "random"])
def test_a_key_of_nan_seeds_a_slot_before_any_other_and_else_goes_to_slot_0(seeds, write):
    k, empty = torch.eye(4).view(1, 4, 1, 4), DictionaryState.empty((1, 1, 3, 4, 1))
    v, mask = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, dtype=torch.bool)
    options = DictionaryOptions(capacity=3, growth="linear", growth_rate=0.5, seeds=seeds)  # two slots of four tokens
    state, _ = write(empty, k, v, options, mask)
    k[0, 3] = torch.nan
    with_nan, slots = write(empty, k, v, options, mask)
    assert slots.flatten().tolist() == [0, 0, 0, 1]
    assert with_nan.keys[0, 0, 1].isnan().all()
    assert with_nan.keys[0, 0, 0].isfinite().all()
    full = replace(options, growth_rate=0.25)  # two slots are in use, and no third comes
    after, slots = write(state, k[:, 3:], v[:, 3:], full, mask[:, 3:])
    assert slots.item() == 0
    assert after.keys[0, 0, 0].isnan().all()
    assert torch.equal(after.keys[0, 0, 1], state.keys[0, 0, 1])


def test_a_slot_of_nan_unites_with_no_other_while_others_are_left():
    inputs = random_inputs(t=12, h=1)
    options = DictionaryOptions(capacity=12, growth="all")
    for position in (0, 5, 11):
        broken = poisoned(inputs, "k", (0, position, 0))
        state, _ = update(empty_state(inputs, options), broken.k, broken.v, options)
        small = resize(state, 4)
        assert small.counts.sum() == 12
        lost = small.keys[0, 0].isnan().any(-1)
        assert small.counts[0, 0][lost].tolist() == [1]
        assert resize(state, 1).counts.flatten().tolist() == [12]
