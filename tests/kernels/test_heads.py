"""What query heads have of their own: a dictionary that several share, and a bias on its slots."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import (
    IMPLEMENTATIONS,
    Inputs,
    all_inputs,
    all_options,
    assert_states_close,
    dtype_of,
    empty_state,
    examples,
    random_inputs,
    tolerance_of,
)
from torch.nn.functional import normalize, scaled_dot_product_attention

from kernels import READ_OUTS, DictionaryOptions, DictionaryState, batch_heads, ovq_attention, reading

HEADS = {  # dimension of the heads in every tensor of a state that has one
    "counts": 1,
    "keys": 1,
    "values": 1,
    "size": 1,
    "pending_keys": 2,
    "pending_values": 2,
}


def one_dictionary_each(inputs: Inputs) -> Inputs:
    """Keys and values repeated, so that every query head has its own."""
    group = inputs.q.shape[2] // inputs.k.shape[2]
    return replace(inputs, k=inputs.k.repeat_interleave(group, 2), v=inputs.v.repeat_interleave(group, 2))


def repeated(state: DictionaryState, group: int) -> DictionaryState:
    """The same for a state."""
    tensors = state.state_dict()
    return state.replace(**{name: tensors[name].repeat_interleave(group, dim) for name, dim in HEADS.items()})


def in_pieces(inputs: Inputs, options, implementation, state, cuts):
    """Outputs and final state of the sequence in pieces."""
    bounds = [0, *sorted({min(c, inputs.q.shape[1]) for c in cuts}), inputs.q.shape[1]]
    outputs = []
    for start, stop in pairwise(bounds):
        o, state = inputs.cut(start, stop).run(options, implementation, state)
        outputs.append(o)
    return torch.cat(outputs, 1), state


# Random choices depend on the head's number, so repeated heads would not make the same ones.
SAME_IN_EVERY_HEAD = st.sampled_from(["spread", "farthest"])


@pytest.mark.parametrize("cut_small", [False, True])
@given(
    inputs=all_inputs(),
    options=st.builds(lambda options, seeds: replace(options, seeds=seeds), all_options(), SAME_IN_EVERY_HEAD),
    cuts=st.lists(st.integers(0, 20), max_size=2),
    before=st.integers(0, 8),
    shared=st.booleans(),
)
@examples(40)
def test_a_group_reads_its_dictionary_as_if_each_head_had_a_copy(cut_small, inputs, options, cuts, before, shared):
    """Outputs, every gradient, and the state; from one row or many, in pieces, with masks."""
    b, g = inputs.k.shape[0], inputs.k.shape[2]
    group = inputs.q.shape[2] // g
    state = empty_state(inputs, options, 1 if shared else b)
    if before:
        history = random_inputs(1 if shared else b, before, *inputs.k.shape[2:], inputs.v.shape[-1], seed=7)
        with torch.no_grad():
            _, state = history.run(options, "chunked")
    weight = torch.randn(
        *inputs.q.shape[:3],
        inputs.v.shape[-1],
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    results = []
    for grouped in (True, False):
        leaves = inputs.leaves()
        keys = state.keys.clone().requires_grad_()
        each, initial = inputs.with_leaves(leaves), state.replace(keys=keys)
        if not grouped:
            each, initial = one_dictionary_each(each), repeated(initial, group)
        with pytest.MonkeyPatch.context() as patch:
            if cut_small and grouped:
                patch.setattr(reading, "TILE", 4)
                patch.setattr(batch_heads, "_SCORES", 16)
            o, final = in_pieces(each, options, "chunked", initial, cuts)
            first = {name: t.unflatten(HEADS[name], (g, -1)) for name, t in final.state_dict().items() if name in HEADS}
            first = final.replace(**{name: t.select(HEADS[name] + 1, 0) for name, t in first.items()})
            loss = (o * weight).sum() + first.keys.pow(3).sum() + first.pending_values.pow(3).sum()
            grads = torch.autograd.grad(loss, [*leaves, keys], materialize_grads=True)
        assert final.heads == (g if grouped else g * group)
        results.append((o, first, grads))
    (o, final, grads), (expected, expected_final, expected_grads) = results
    torch.testing.assert_close(o, expected)
    assert_states_close(final.detach(), expected_final.detach())
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_query_heads_are_grouped_as_in_torch(implementation, kv_heads):
    """Head h reads h // (H / G), shown where the operator is softmax attention."""
    options = DictionaryOptions(capacity=40, chunk_size=8, growth="all")
    dtype, tolerance = dtype_of(implementation), tolerance_of(implementation)
    inputs = random_inputs(
        b=2, t=11 if implementation == "triton" else 21, h=kv_heads, group=6 // kv_heads, dtype=dtype
    )
    leaves, expected_leaves = inputs.leaves(), inputs.leaves()
    o, final = inputs.with_leaves(leaves).run(options, implementation)
    q, k, v, beta = expected_leaves
    q, k = (normalize(x, dim=-1).transpose(1, 2) for x in (q, k))
    expected = scaled_dot_product_attention(
        q * beta[:, None, None], k, v.transpose(1, 2), is_causal=True, scale=1.0, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(o, expected, **tolerance)
    assert final.heads == kv_heads
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    grads, expected_grads = (
        torch.autograd.grad((x * weight).sum(), y) for x, y in ((o, leaves), (expected, expected_leaves))
    )
    torch.testing.assert_close(grads, expected_grads, **tolerance)


def test_query_heads_make_no_state_of_their_own():
    """It is as large as without them, and each dictionary counts a token once."""
    options = DictionaryOptions(capacity=6, chunk_size=8)
    _, final = random_inputs(b=2, t=16, h=2, group=4).run(options, "chunked")
    assert final.nbytes == random_inputs(b=2, t=16, h=2).run(options, "chunked")[1].nbytes
    assert final.counts.sum(-1).tolist() == [[16, 16], [16, 16]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_one_thing_alone(implementation):
    """Of the bias when nothing else learns; of the keys when only the final state matters."""
    options = DictionaryOptions(capacity=5, chunk_size=4)
    inputs = random_inputs(t=13, h=3, group=2, biased=True, dtype=dtype_of(implementation))
    bias = inputs.slot_bias.clone().requires_grad_()
    o, _ = replace(inputs, slot_bias=bias).run(options, implementation)
    (grad,) = torch.autograd.grad(o.pow(2).sum(), bias)
    leaves = inputs.leaves()
    o, _ = inputs.with_leaves(leaves).run(options, implementation)
    tolerance = tolerance_of(implementation)
    torch.testing.assert_close(grad, torch.autograd.grad(o.pow(2).sum(), leaves)[-1], **tolerance)
    assert grad.all()
    keys = inputs.k.clone().requires_grad_()
    _, final = replace(inputs, k=keys).run(options, implementation)
    (grad,) = torch.autograd.grad(final.keys.pow(3).sum(), keys)
    assert grad[:, :12].any()


def softmax_read(q, beta, bias, counts, keys, values, own_keys, own_values, read_out):
    """One query's output in numpy, term by term."""
    numerator, denominator = np.zeros(values.shape[-1]), 0.0
    for c, mu, nu in zip(counts, keys, values, strict=True):
        if read_out == "unit":
            mu = mu / np.linalg.norm(mu)
        logit = beta * q @ mu - (beta * mu @ mu / 2 if read_out == "gmr" else 0)
        numerator, denominator = numerator + c * np.exp(bias + logit) * nu, denominator + c * np.exp(bias + logit)
    for k, v in zip(own_keys, own_values, strict=True):
        logit = beta * q @ k - (beta / 2 if read_out == "gmr" else 0)
        numerator, denominator = numerator + np.exp(logit) * v, denominator + np.exp(logit)
    return numerator / denominator


def learned_dictionary(b=1, h=2, n=5, seed=3):
    """A full state with counts from 1 to 9 and means of no particular length."""
    g = torch.Generator().manual_seed(seed)
    return DictionaryState.empty((b, h, n, 4, 3), torch.float64).replace(
        counts=torch.randint(1, 10, (b, h, n), generator=g),
        keys=torch.rand(b, h, n, 4, generator=g, dtype=torch.float64) - 0.5,
        values=torch.randn(b, h, n, 3, generator=g, dtype=torch.float64),
        size=torch.full((b, h), n),
        tokens=torch.full((b,), 50),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("group", [1, 3])
def test_a_slot_bias_multiplies_the_weight_of_slots_alone(group, read_out, implementation):
    state = learned_dictionary()
    dtype, tolerance = dtype_of(implementation), 1e-10 if dtype_of(implementation) == torch.float64 else 1e-3
    inputs = random_inputs(t=4, group=group, biased=True)
    options = DictionaryOptions(capacity=5, chunk_size=8, read_out=read_out)
    o, _ = inputs.to(dtype).run(options, implementation, state.to(dtype=dtype))
    q, k = (normalize(x[0], dim=-1).numpy() for x in (inputs.q, inputs.k))
    counts, keys, values = (x[0].numpy() for x in (state.counts, state.keys, state.values))
    for head in range(2 * group):
        mine = head // group
        for s in range(4):
            expected = softmax_read(
                q[s, head],
                float(inputs.beta[head]),
                float(inputs.slot_bias[head]),
                counts[mine],
                keys[mine],
                values[mine],
                k[: s + 1, mine],
                inputs.v[0, : s + 1, mine].numpy(),
                read_out,
            )
            np.testing.assert_allclose(o[0, s, head].numpy(), expected, rtol=tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
def test_log_two_doubles_all_counts(read_out, implementation):
    dtype = dtype_of(implementation)
    state = learned_dictionary(b=2).to(dtype=dtype)
    inputs = random_inputs(b=2, t=6, group=2, masked=0.2, dtype=dtype)
    options = DictionaryOptions(capacity=5, chunk_size=8, read_out=read_out)
    expected, _ = inputs.run(options, implementation, state.replace(counts=2 * state.counts))
    biased = replace(inputs, slot_bias=torch.full((4,), 2.0, dtype=dtype).log())
    o, final = biased.run(options, implementation, state)
    torch.testing.assert_close(o, expected, **tolerance_of(implementation))
    assert not torch.allclose(o, inputs.run(options, implementation, state)[0])
    assert torch.equal(final.counts, state.counts)  # read otherwise, written alike


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("bias", [-1e4, -torch.inf])
def test_without_weight_the_dictionary_is_not_seen(bias, read_out, implementation):
    """Softmax attention within each chunk: at every chunk of the call, forward and backward."""
    options = DictionaryOptions(capacity=6, chunk_size=5, read_out=read_out)
    inputs = random_inputs(b=2, t=17, group=2, dtype=torch.float32)
    inputs.slot_bias = torch.full((4,), bias)
    leaves = inputs.leaves()
    o, _ = inputs.with_leaves(leaves).run(options, implementation, None)
    q, k = (normalize(x, dim=-1).transpose(1, 2) for x in (inputs.q, inputs.k))
    for start in range(0, 17, 5):
        part = slice(start, start + 5)
        expected = scaled_dot_product_attention(
            q[:, :, part] * inputs.beta[:, None, None],
            k[:, :, part],
            inputs.v.transpose(1, 2)[:, :, part],
            is_causal=True,
            scale=1.0,
            enable_gqa=True,
        )
        torch.testing.assert_close(o[:, part], expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(o.sum(), leaves)
    assert all(g.isfinite().all() for g in grads)
    assert not grads[-1].any()


@given(all_inputs(), all_options(), st.sampled_from(("reference", "chunked")))
@examples()
def test_a_bias_of_zero_is_none(inputs, options, implementation):
    zero = replace(inputs, slot_bias=torch.zeros_like(inputs.beta))
    none = replace(inputs, slot_bias=None)
    o, _ = zero.run(options, implementation)
    torch.testing.assert_close(o, none.run(options, implementation)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 12, 3, 4), "v": torch.zeros(1, 12, 3, 3)}, "q has 4 heads, k and v have 3"),
        ({"k": torch.zeros(1, 12, 8, 4), "v": torch.zeros(1, 12, 8, 3)}, "q has 4 heads, k and v have 8"),
        ({"v": torch.zeros(1, 12, 4, 3)}, r"v \[B, T, G, Dv\]"),
        ({"beta": torch.ones(2)}, r"beta must have shape \[4\]"),
        ({"slot_bias": torch.zeros(2)}, r"slot_bias must be floating of shape \[4\].*\[2\]"),
        ({"slot_bias": torch.zeros(4, dtype=torch.int64)}, "slot_bias must be floating.*int64"),
        ({"initial_state": DictionaryState.empty((1, 4, 4, 4, 3))}, r"\(4, 4, 3\), the tokens \(2, 4, 3\)"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors_say_what_does_not_fit(change, message):
    inputs = random_inputs(group=2, dtype=torch.float32)
    arguments = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "beta": inputs.beta} | change
    with pytest.raises(ValueError, match=message):
        ovq_attention(**arguments, options=DictionaryOptions(capacity=4, chunk_size=4))
