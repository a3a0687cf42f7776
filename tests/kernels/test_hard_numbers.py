"""Numerically hard cases: what real streams contain sooner or later."""

import numpy as np
import pytest
import torch
from kernel_helpers import (
    IMPLEMENTATIONS,
    Inputs,
    dtype_of,
    empty_state,
    random_inputs,
    relative_rms,
    served,
    tolerance_of,
)

from kernels import (
    ASSIGNMENT,
    GROWTH,
    LEARNING_RATES,
    READ_OUTS,
    SEEDS,
    DictionaryOptions,
    DictionaryState,
    ovq_attention,
    reference,
    update,
)


def outputs_and_gradients(inputs, options, implementation="chunked"):
    leaves = inputs.leaves()
    o, final = inputs.with_leaves(leaves).run(options, implementation)
    return o, final, torch.autograd.grad(o.pow(2).sum() + final.keys.pow(2).sum(), leaves)


@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("seeds", SEEDS)
def test_identical_keys(seeds, read_out):
    """All similarities tie; equal keys weigh equally, so the last output is the mean of all values."""
    inputs = random_inputs(t=24, dtype=torch.float32)
    inputs.k[:] = inputs.k[:, :1]
    options = DictionaryOptions(capacity=6, chunk_size=5, seeds=seeds, read_out=read_out)
    for implementation in IMPLEMENTATIONS:
        if served(options, implementation) != options:
            continue
        o, _, grads = outputs_and_gradients(inputs, options, implementation)
        torch.testing.assert_close(o[:, -1], inputs.v.mean(1), atol=1e-5, rtol=1e-4)
        assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("write", [update, reference.update])
def test_ties_go_to_the_lowest_slot_and_the_earliest_token(write):
    options = DictionaryOptions(capacity=70, growth="all")
    axes = torch.eye(2)
    for first in (0, 5, 40, 66):  # of the slots that hold the token's key; all others hold one at a right angle
        keys = axes[(torch.arange(70) >= first).long()]
        state = DictionaryState.empty((1, 1, 70, 2, 1)).replace(
            counts=torch.ones(1, 1, 70, dtype=torch.int64),
            keys=keys[None, None],
            size=torch.tensor([[70]]),
            tokens=torch.tensor([70]),
        )
        k = axes[1].view(1, 1, 1, 2)
        _, slots = write(state, k, torch.zeros(1, 1, 1, 1), options, torch.ones(1, 1, dtype=torch.bool))
        assert slots.item() == first
    for assignment in ASSIGNMENT:
        options = DictionaryOptions(capacity=3, growth="all", assignment=assignment)
        empty = DictionaryState.empty((1, 1, 3, 2, 1))
        k = axes[1].expand(1, 5, 1, 2)
        _, slots = write(empty, k, torch.zeros(1, 5, 1, 1), options, torch.ones(1, 5, dtype=torch.bool))
        assert slots.flatten().tolist() == [0, 1, 2, 0, 0]


@pytest.mark.parametrize("write", [update, reference.update])
@pytest.mark.parametrize(
    ("choice", "expected"), [({}, [0, 1, 0, 1, 0, 1]), ({"assignment": "old"}, [0, 1, 0, 0, 0, 0])]
)
def test_tokens_of_a_first_chunk_join_its_seeds(choice, expected, write):
    """By default; among old slots alone there is only the first token's to join."""
    options = DictionaryOptions(capacity=2, growth="all", **choice)
    k = torch.eye(2).repeat(3, 1).view(1, 6, 1, 2)
    empty = DictionaryState.empty((1, 1, 2, 2, 1))
    _, slots = write(empty, k, torch.zeros(1, 6, 1, 1), options, torch.ones(1, 6, dtype=torch.bool))
    assert slots.flatten().tolist() == expected


@pytest.mark.parametrize("read_out", READ_OUTS)
def test_opposite_keys_cancel(read_out):
    """A slot whose mean is zero: no direction for `unit`, no logit for `raw`, and no NaN."""
    inputs = random_inputs(t=16, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)[None, :, None, None]
    inputs.k[:] = inputs.k[:, :1] * sign
    options = DictionaryOptions(capacity=1, chunk_size=4, read_out=read_out)
    expected, final, _ = outputs_and_gradients(inputs, options, "reference")
    assert final.keys.abs().max() < 1e-15
    for name in IMPLEMENTATIONS:
        o, _, grads = outputs_and_gradients(inputs.to(dtype_of(name)), options, name)
        torch.testing.assert_close(o, expected.to(o.dtype), **tolerance_of(name))
        assert all(g.isfinite().all() for g in grads)


def some_scaled(scale):
    inputs = random_inputs(t=20, dtype=torch.float32)
    inputs.k[:, 3::4] *= scale
    inputs.q[:, 2::4] *= scale
    inputs.k[:, :1] *= scale  # the first slot too
    return inputs


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("scale", [0.0, 1e-44])
def test_keys_and_queries_without_a_norm(scale, read_out, implementation):
    """Zero, or shorter than any normal number: they count as zero, forward and backward."""
    options = DictionaryOptions(capacity=5, chunk_size=6, read_out=read_out)
    o, final, grads = outputs_and_gradients(some_scaled(scale), options, implementation)
    assert o.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    assert not grads[0][:, 2::4].any()
    assert not grads[1][:, 3::4].any()
    assert int(final.tokens) == 18


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-64, 2.0**64, 2.0**124])
def test_keys_and_queries_whose_square_fp32_cannot_hold(scale, read_out, implementation):
    """Their direction is all that counts."""
    options = DictionaryOptions(capacity=5, chunk_size=6, read_out=read_out)
    inputs = some_scaled(scale)
    assert inputs.k.isfinite().all()
    o, final, grads = outputs_and_gradients(inputs, options, implementation)
    plain_o, plain_final, plain_grads = outputs_and_gradients(some_scaled(1.0), options, implementation)
    torch.testing.assert_close(o, plain_o, **tolerance_of(implementation))
    torch.testing.assert_close(final.keys, plain_final.keys, **tolerance_of(implementation))
    assert torch.equal(final.counts, plain_final.counts)
    if scale > 2.0**-100:  # where it is larger than fp32 can hold it is only finite
        for which, rows in ((0, slice(2, None, 4)), (1, slice(3, None, 4))):
            grads[which][:, rows] *= scale
        grads[1][:, :1] *= scale
        for found, expected in zip(grads, plain_grads, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("beta", [1e-30, 1e-3, 1e4, 1e30])
def test_huge_and_tiny_beta(beta, read_out, implementation):
    """Tiny: the mean of all values seen. Huge: the value nearest to the query."""
    inputs = random_inputs(t=20, dtype=torch.float32)
    inputs.beta[:] = beta
    inputs.q[:] = inputs.k  # so that the query's own token is nearest
    options = DictionaryOptions(capacity=5, chunk_size=6, read_out=read_out)
    o, _, grads = outputs_and_gradients(inputs, options, implementation)
    assert o.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    if beta > 1:
        torch.testing.assert_close(o, inputs.v)
    elif beta < 1e-6:
        expected = inputs.v.cumsum(1) / torch.arange(1, 21)[None, :, None, None]
        torch.testing.assert_close(o, expected, atol=1e-5, rtol=1e-4)


def test_counts_beyond_what_fp32_counts():
    """At 2^24 tokens a fp32 count would stand still; here the 2^24 + 1st still counts, and the mean still moves."""
    start = 2**24
    options = DictionaryOptions(capacity=1)
    state = DictionaryState.empty((1, 1, 1, 2, 1)).replace(
        counts=torch.tensor([[[start]]]),
        keys=torch.tensor([[[[1.0, 0.0]]]]),
        values=torch.tensor([[[[1.0]]]]),
        size=torch.tensor([[1]]),
        tokens=torch.tensor([start]),
    )
    k = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    for i in range(1, 4):
        state, _ = update(state, k, torch.zeros(1, 1, 1, 1), options)
        assert int(state.counts) == int(state.tokens) == start + i
    assert state.keys[0, 0, 0, 1] == pytest.approx(3 / start, rel=1e-5)


def test_a_million_tokens():
    """Counts add up to the tokens, and count-weighted means to the mean of all tokens, after 3900 updates in fp32."""
    options = DictionaryOptions(capacity=16, chunk_size=256)
    g = torch.Generator().manual_seed(0)
    state, k_sum, v_sum, n = None, 0.0, 0.0, 0
    with torch.no_grad():
        for _ in range(10):
            k = torch.nn.functional.normalize(torch.randn(1, 100_000, 1, 4, generator=g) + 0.3, dim=-1)
            v = torch.randn(1, 100_000, 1, 2, generator=g) + 1
            _, state = ovq_attention(k, k, v, torch.ones(1), options, initial_state=state, output_final_state=True)
            k_sum, v_sum, n = k_sum + k.double().sum((0, 1)), v_sum + v.double().sum((0, 1)), n + 100_000
    pending_k, pending_v = (x.double().sum((0, 1)) for x in (state.pending_keys, state.pending_values))
    assert state.pending == 1_000_000 % 256
    assert int(state.counts.sum()) == int(state.tokens) == n - state.pending
    weight = state.counts[0].double() / int(state.tokens)
    mean_k = (weight[..., None] * state.keys[0]).sum(1)
    mean_v = (weight[..., None] * state.values[0]).sum(1)
    torch.testing.assert_close(mean_k, (k_sum - pending_k) / int(state.tokens), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mean_v, (v_sum - pending_v) / int(state.tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("learning_rate", LEARNING_RATES)
def test_gradients_stay_sound_over_65536_tokens_in_fp32(learning_rate):
    """Clusters that no rounding confuses, so that fp32 and fp64 make the same dictionary; their gradients agree."""
    n, t = 8, 65_536
    options = DictionaryOptions(capacity=n, chunk_size=256, learning_rate=learning_rate, rate=0.01)
    g = torch.Generator().manual_seed(0)
    centres = torch.eye(n)
    k = centres[torch.randint(n, (1, t, 1), generator=g)] + 0.05 * torch.randn(1, t, 1, n, generator=g)
    q, v, weight = (torch.randn(1, t, 1, n, generator=g) for _ in range(3))
    results = []
    for dtype in (torch.float64, torch.float32):
        state = DictionaryState.empty((1, 1, n, n, n), dtype).replace(
            counts=torch.ones(1, 1, n, dtype=torch.int64),
            keys=centres.to(dtype)[None, None],
            values=centres.to(dtype)[None, None],
            size=torch.tensor([[n]]),
            tokens=torch.tensor([10 * n]),
        )
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v, torch.tensor([3.0]))]
        o, _ = ovq_attention(*leaves, options, initial_state=state)
        results.append([o, *torch.autograd.grad((o * weight.to(dtype)).sum(), leaves)])
    for expected, actual in zip(*results, strict=True):
        assert relative_rms(actual, expected) < 2e-5


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("assignment", ASSIGNMENT)
def test_more_tokens_than_slots_in_one_update(growth, assignment):
    """A batch write far larger than the dictionary, and one far smaller: sizes stay legal, nothing is lost."""
    options = DictionaryOptions(capacity=7, growth=growth, assignment=assignment)
    inputs = random_inputs(b=5, t=40, dtype=torch.float32)
    state, slots = update(empty_state(inputs, options, 1), inputs.k, inputs.v, options)
    state, _ = update(state, inputs.k[:1, :1], inputs.v[:1, :1], options)
    assert state.counts.sum(-1).tolist() == [[201, 201]]
    assert (state.size <= 7).all()
    assert torch.equal((state.counts > 0).sum(-1), state.size)
    assert slots.min() >= 0
    assert slots.max() < 7


def test_what_a_masked_token_holds_does_not_matter():
    options = DictionaryOptions(capacity=6, chunk_size=5)
    inputs = random_inputs(b=2, t=22, masked=0.4)
    clean = Inputs(*(x.nan_to_num() for x in (inputs.q, inputs.k, inputs.v)), inputs.beta, inputs.mask)
    for implementation in IMPLEMENTATIONS:
        dtype = dtype_of(implementation)
        o, _, grads = outputs_and_gradients(inputs.to(dtype), options, implementation)
        expected, _, expected_grads = outputs_and_gradients(clean.to(dtype), options, implementation)
        torch.testing.assert_close(o, expected)
        torch.testing.assert_close(grads, expected_grads)
        assert all(not g[~inputs.mask].any() for g in grads[:3])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("beta", [0.0, -2.0])
def test_beta_that_is_not_positive(beta, implementation):
    """Zero sees all alike, its gradients are those of the reference, and a number stands for all heads."""
    options = DictionaryOptions(capacity=5, chunk_size=6)
    inputs = random_inputs(t=20, dtype=torch.float32)
    inputs.beta[:] = beta
    o, _, grads = outputs_and_gradients(inputs, options, implementation)
    expected, _, expected_grads = outputs_and_gradients(inputs.to(torch.float64), options, "reference")
    for found, right in zip((o, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-3, atol=1e-4)
    if beta == 0:
        mean = inputs.v.cumsum(1) / torch.arange(1, 21)[None, :, None, None]
        torch.testing.assert_close(o, mean, rtol=1e-4, atol=1e-5)
    for number in (beta, np.float32(beta)):
        same, _ = ovq_attention(inputs.q, inputs.k, inputs.v, number, options, implementation=implementation)
        assert torch.equal(same, o)
    nan, _ = ovq_attention(inputs.q, inputs.k, inputs.v, float("nan"), options, implementation=implementation)
    assert nan.isnan().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("b", "t"), [(0, 5), (2, 0), (0, 0)])
def test_no_rows_and_no_tokens(b, t, implementation):
    q, k, v = (torch.zeros(b, t, heads, size) for heads, size in ((4, 3), (2, 3), (2, 5)))
    options = DictionaryOptions(capacity=5, chunk_size=3)
    o, state = ovq_attention(q, k, v, 1.0, options, output_final_state=True, implementation=implementation)
    assert o.shape == (b, t, 4, 5)
    assert state.batch == b
    assert state.pending == t % 3


@pytest.mark.parametrize("shapes", [((2, 0), (2, 3)), ((2, 3), (2, 0)), ((0, 3), (0, 3))], ids=["Dk", "Dv", "heads"])
def test_no_features_and_no_heads_are_refused(shapes):
    (heads, dk), (_, dv) = shapes
    q, v = torch.zeros(1, 4, heads, dk), torch.zeros(1, 4, heads, dv)
    with pytest.raises(ValueError, match="heads and their features must be at least one"):
        ovq_attention(q, q, v, 1.0, DictionaryOptions(capacity=5))
