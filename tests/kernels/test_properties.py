"""What the operator is, shown against things that are not it: the property table of the design."""

import subprocess
import sys
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
    served,
    tolerance_of,
)
from torch.nn.functional import normalize, scaled_dot_product_attention

from kernels import READ_OUTS, DictionaryOptions, DictionaryState, update, write


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("t", [1, 9, 24, 37])
def test_every_token_a_slot_is_softmax_attention(t, read_out, implementation):
    options = DictionaryOptions(capacity=40, chunk_size=8, growth="all", read_out=read_out)
    inputs = random_inputs(b=2, t=t, dtype=torch.float32)
    leaves, expected_leaves = inputs.leaves(), inputs.leaves()
    o, _ = inputs.with_leaves(leaves).run(options, implementation)
    q, k, v, beta = expected_leaves
    q, k = (normalize(x, dim=-1).transpose(1, 2) for x in (q, k))
    expected = scaled_dot_product_attention(q * beta[:, None, None], k, v.transpose(1, 2), is_causal=True, scale=1.0)
    torch.testing.assert_close(o, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((o * weight).sum(), leaves)
    expected_grads = torch.autograd.grad((expected.transpose(1, 2) * weight).sum(), expected_leaves)
    torch.testing.assert_close(grads, expected_grads, atol=1e-5, rtol=1e-4)


@given(all_inputs(), all_options(), st.lists(st.integers(0, 20), max_size=4), st.sampled_from(("reference", "chunked")))
@examples(50)
def test_pieces_are_the_whole(inputs, options, cuts, implementation):
    """Any split of T, in mid-chunk or not: bitwise on the reference."""
    assert_pieces_are_the_whole(inputs, options, cuts, implementation)


@given(all_inputs(torch.float32), all_options(), st.lists(st.integers(0, 20), max_size=3))
@examples(5, shrink=False)
def test_pieces_are_the_whole_for_kernels(inputs, options, cuts):
    assert_pieces_are_the_whole(inputs, served(options, "triton"), cuts, "triton")


def assert_pieces_are_the_whole(inputs, options, cuts, implementation):
    tolerance = {"rtol": 0, "atol": 0} if implementation == "reference" else tolerance_of(implementation)
    t = inputs.q.shape[1]
    whole, final = inputs.run(options, implementation)
    bounds = [0, *sorted(min(c, t) for c in cuts), t]
    state, outputs = None, []
    for start, stop in pairwise(bounds):
        o, state = inputs.cut(start, stop).run(options, implementation, state)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **tolerance)
    assert_states_close(state, final, **tolerance)


@pytest.mark.parametrize("tokens", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_tokens_one_at_a_time(tokens):
    options = DictionaryOptions(capacity=64, chunk_size=32)
    inputs = random_inputs(t=tokens, h=2, dk=8, dv=8)
    with torch.no_grad():
        whole, final = inputs.run(options, "chunked")
        state, outputs = None, []
        for s in range(tokens):
            o, state = inputs.cut(s, s + 1).run(options, "chunked", state)
            outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    assert_states_close(state, final)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_causality(implementation):
    """The Jacobian is lower triangular, and where it may be it is not zero."""
    t = 9 if implementation == "triton" else 14  # an interpreted kernel takes its time
    inputs = random_inputs(t=t, h=1, dv=1 if implementation == "triton" else 3, dtype=dtype_of(implementation))
    options = DictionaryOptions(capacity=5, chunk_size=4)

    def run(q, k, v):
        return Inputs(q, k, v, inputs.beta, inputs.mask).run(options, implementation)[0]

    of_q, of_k, of_v = torch.autograd.functional.jacobian(run, (inputs.q, inputs.k, inputs.v))
    of_q, of_k, of_v = (j.abs().sum((0, 2, 3, 4, 6, 7)) for j in (of_q, of_k, of_v))  # [t of output, t of input]
    assert torch.equal(of_q, of_q.diag().diag())
    for j in (of_k, of_v):
        assert torch.equal(j, j.tril())
    assert (of_v[torch.ones(t, t).tril().bool()] > 0).all()  # every token that came is in every output
    assert (of_q.diag()[1:] > 0).all()
    assert (of_k[-1] > 0).all()


@given(all_inputs(torch.float32), all_options(learning_rate="adaptive"), st.integers(1, 3))
@examples()
def test_slots_are_the_means_of_their_tokens(inputs, options, writes):
    state = empty_state(inputs, options, 1)
    keys, values, slots = [], [], []
    for i in range(writes):
        k = inputs.k * (i + 1) + i  # other keys in every write
        state, slot, united = write(state, k, inputs.v, options, inputs.mask)
        for row, token, head in (united >= 0).nonzero().tolist():  # a slot's tokens go where it went
            for before in slots:
                before[before[:, head] == slot[row, token, head], head] = united[row, token, head]
        keys.append(normalize(k[inputs.mask], dim=-1))
        values.append(inputs.v[inputs.mask])
        slots.append(slot[inputs.mask])
    keys, values, slots = torch.cat(keys), torch.cat(values), torch.cat(slots)  # [tokens, H, .]
    assert int(state.tokens) == len(slots)
    for head in range(slots.shape[1]):
        for slot in range(options.capacity):
            mine = slots[:, head] == slot
            assert int(state.counts[0, head, slot]) == int(mine.sum())
            assert bool(mine.any()) == (slot < int(state.size[0, head]))
            if mine.any():
                torch.testing.assert_close(state.keys[0, head, slot], keys[mine, head].mean(0), atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(
                    state.values[0, head, slot], values[mine, head].mean(0), atol=1e-6, rtol=1e-5
                )


@given(all_inputs(), all_options())
@examples()
def test_attention_writes_what_update_writes(inputs, options):
    """The dictionary after a sequence is that of one update per whole chunk."""
    _, final = inputs.run(options, "chunked")
    state = empty_state(inputs, options)
    length = options.chunk_size
    for start in range(0, inputs.q.shape[1] // length * length, length):
        part = inputs.cut(start, start + length)
        state, _ = update(state, part.k, part.v, options, part.mask)
    for name in ("counts", "keys", "values", "size", "tokens"):
        torch.testing.assert_close(getattr(final, name), getattr(state, name))


def gaussian_mixture_regression(x, weights, means, values, beta):
    """E[value | key = x] of a mixture with covariance I / beta; x [D], means [n, D], values [n, E]."""
    d = len(x)
    densities = []
    for mean in means:
        difference = x - mean
        covariance = np.eye(d) / beta
        exponent = -0.5 * difference @ np.linalg.inv(covariance) @ difference
        densities.append(np.exp(exponent) / np.sqrt((2 * np.pi) ** d * np.linalg.det(covariance)))
    joint = np.array(weights) / np.sum(weights) * np.array(densities)
    responsibilities = joint / joint.sum()
    return responsibilities @ np.array(values)


@pytest.mark.parametrize("query_norm", [True, False])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_read_out_is_gaussian_mixture_regression(implementation, query_norm):
    """`gmr` for any means, and `raw` where means have length one; tokens of the chunk are components of weight one."""
    g = torch.Generator().manual_seed(0)
    n, dk, dv, t, beta = 5, 3, 2, 4, 3.0
    means = torch.rand(n, dk, generator=g, dtype=torch.float64) - 0.5
    counts = torch.randint(1, 9, (n,), generator=g)
    inputs = random_inputs(t=t, h=1, dk=dk, dv=dv)
    for read_out, mu in (("gmr", means), ("raw", normalize(means, dim=-1)), ("unit", normalize(means, dim=-1))):
        state = DictionaryState.empty((1, 1, n, dk, dv), torch.float64).replace(
            counts=counts.view(1, 1, n),
            keys=mu.view(1, 1, n, dk),
            values=torch.randn(1, 1, n, dv, generator=g, dtype=torch.float64),
            size=torch.tensor([[n]]),
        )
        options = DictionaryOptions(capacity=n, chunk_size=8, read_out=read_out, query_norm=query_norm)
        same = Inputs(inputs.q, inputs.k, inputs.v, torch.tensor([beta]), inputs.mask)
        dtype, tolerance = dtype_of(implementation), 1e-10 if dtype_of(implementation) == torch.float64 else 1e-3
        o, _ = same.to(dtype).run(options, implementation, state.to(dtype=dtype))
        for s in range(t):
            components = [*mu.numpy(), *normalize(inputs.k[0, : s + 1, 0], dim=-1).numpy()]
            values = [*state.values[0, 0].numpy(), *inputs.v[0, : s + 1, 0].numpy()]
            query = inputs.q[0, s, 0]
            x = (normalize(query, dim=-1) if query_norm else query).numpy()
            expected = gaussian_mixture_regression(x, [*counts.tolist(), *[1] * (s + 1)], components, values, beta)
            np.testing.assert_allclose(o[0, s, 0].numpy(), expected, rtol=tolerance)


@pytest.mark.parametrize("read_out", ["raw", "unit"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_length_of_a_query_is_a_temperature_of_its_own(implementation, read_out):
    inputs, tolerance = random_inputs(t=9, masked=0.2), 1e-10 if dtype_of(implementation) == torch.float64 else 1e-3
    lengths = torch.linspace(0.5, 3, 9, dtype=torch.float64)
    options = DictionaryOptions(capacity=4, chunk_size=3, read_out=read_out)
    scaled = replace(inputs, q=normalize(inputs.q, dim=-1) * lengths[:, None, None])
    dtype = dtype_of(implementation)
    o, _ = scaled.to(dtype).run(replace(options, query_norm=False), implementation)
    for s in range(9):
        sharper, _ = replace(inputs, beta=inputs.beta * lengths[s]).run(options, "reference")
        torch.testing.assert_close(o[:, s].double(), sharper[:, s], rtol=tolerance, atol=tolerance)


def test_the_update_is_a_newton_step():
    """Of the negative log-likelihood of all tokens, their slots known, by autograd's gradient and Hessian."""
    n, dk, beta = 4, 3, 2.5
    options = DictionaryOptions(capacity=n, growth="all")
    first, second = random_inputs(t=9, h=1, dk=dk, seed=1), random_inputs(t=7, h=1, dk=dk, seed=2)
    state, slots = update(empty_state(first, options), first.k, first.v, options)
    assert int(state.size) == n
    after, more = update(state, second.k, second.v, options)  # full: assigns only
    keys = normalize(torch.cat([first.k, second.k], 1)[0, :, 0], dim=-1)
    slots = torch.cat([slots, more], 1)[0, :, 0]
    weights = torch.bincount(slots, minlength=n) / len(slots)

    def negative_log_likelihood(mu):
        normal = torch.distributions.MultivariateNormal(mu.view(n, dk)[slots], torch.eye(dk, dtype=mu.dtype) / beta)
        return -(weights[slots].log() + normal.log_prob(keys)).sum()

    mu = state.keys.flatten()
    gradient = torch.autograd.functional.jacobian(negative_log_likelihood, mu)
    hessian = torch.autograd.functional.hessian(negative_log_likelihood, mu)
    assert gradient.norm() > 1e-2
    torch.testing.assert_close(after.keys.flatten(), mu - torch.linalg.solve(hessian, gradient))


@given(all_inputs(), all_options(), st.data())
@examples()
def test_a_masked_chunk_might_as_well_not_be(inputs, options, data):
    """Outputs and dictionary are those of the sequence without the chunk; masked outputs are zero."""
    length = options.chunk_size
    chunk = data.draw(st.integers(0, inputs.q.shape[1] // length)) * length
    gone = slice(chunk, chunk + length)
    inputs.mask[:, gone] = False
    o, final = inputs.run(options, "chunked")
    assert not o[~inputs.mask].any()
    rest = inputs.on_tokens(lambda x: torch.cat([x[:, :chunk], x[:, chunk + length :]], 1))
    shorter, without = rest.run(options, "chunked")
    torch.testing.assert_close(torch.cat([o[:, :chunk], o[:, chunk + length :]], 1), shorter)
    for name in ("counts", "keys", "values", "size", "tokens"):
        torch.testing.assert_close(getattr(final, name), getattr(without, name))


@given(all_inputs(), all_options())
@examples()
def test_rows_that_share_a_dictionary_see_it_as_their_own(inputs, options):
    history = random_inputs(1, 2 * options.chunk_size, *inputs.k.shape[2:], inputs.v.shape[-1], seed=5)
    _, state = history.run(options, "chunked")
    b = inputs.q.shape[0]
    copies = DictionaryState(**{k: t.expand(b, *t.shape[1:]).clone() for k, t in state.state_dict().items()})
    expected, expected_final = inputs.run(options, "chunked", copies)
    o, final = inputs.run(options, "chunked", state)
    torch.testing.assert_close(o, expected)
    assert_states_close(final, expected_final)


def test_a_state_is_never_modified_and_shared_until_a_chunk_closes():
    options = DictionaryOptions(capacity=8, chunk_size=4)
    inputs = random_inputs(b=3, t=3)
    _, state = random_inputs(t=8).run(options, "chunked")
    before = state.clone()
    _, after = inputs.run(options, "chunked", state)
    assert after.keys.data_ptr() == state.keys.data_ptr()
    _, closed = inputs.run(options, "chunked", after)
    assert closed.keys.data_ptr() != state.keys.data_ptr()
    assert_states_close(state, before, rtol=0, atol=0)


def test_the_size_of_the_state_does_not_depend_on_tokens():
    options = DictionaryOptions(capacity=16, chunk_size=8)
    sizes = {random_inputs(t=t).run(options, "chunked")[1].nbytes for t in (8, 80, 800)}
    assert len(sizes) == 1


PEAK = """
import resource, torch
from kernels import DictionaryOptions, ovq_attention
torch.set_num_threads(1)
def run(t, n):
    q, k, v = (torch.randn(1, t, 1, 32, requires_grad=True) for _ in range(3))
    o, _ = ovq_attention(q, k, v, torch.ones(1, requires_grad=True), DictionaryOptions(capacity=n, chunk_size=32))
    o.sum().backward()
run(64, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(16384, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_backward_keeps_no_dictionary_per_chunk():
    """512 chunks of dictionaries of 256 KiB would be 128 MiB; inputs, outputs and gradients are 16."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 56 * 1024


def test_dictionaries_grow_as_planned():
    """Slots in use after every chunk, against the schedules written down again in plain integers."""
    n, length = 10, 4
    schedules = {
        "plateau": lambda t: t * n // (t + n),
        "linear": lambda t: int(0.5 * t),
        "all": lambda t: t,
        "dirichlet": lambda t: int(3 * np.log1p(t / 3)),
        "novelty": lambda t: t * n // (t + n),
    }
    inputs = random_inputs(t=64, h=1)
    for growth, schedule in schedules.items():
        options = DictionaryOptions(
            capacity=n, chunk_size=length, growth=growth, growth_rate=0.5, concentration=3.0, novelty_threshold=1.0
        )
        state = None
        for t in range(length, 65, length):
            _, state = inputs.cut(t - length, t).run(options, "chunked", state)
            assert int(state.size) == max(1, min(n, schedule(t))), (growth, t)


def test_novelty_stops_and_resumes():
    """Growth ends while the same keys come again and goes on when others do."""
    options = DictionaryOptions(capacity=32, growth="novelty", novelty_threshold=0.4)
    keys = torch.eye(8, dtype=torch.float64).view(1, 8, 1, 8)
    values = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    state = DictionaryState.empty((1, 1, 32, 8, 1), torch.float64)
    sizes = []
    for part in [keys[:, :4]] * 4 + [keys] * 3:
        state, _ = update(state, part, values[:, : part.shape[1]], options)
        sizes.append(int(state.size))
    # Four keys share three slots (the schedule allows no more), all nearer than the threshold; then four new ones come.
    assert sizes == [3, 3, 3, 3, 7, 7, 7]


def test_random_seeds_do_not_depend_on_the_split_or_the_company():
    options = DictionaryOptions(capacity=8, chunk_size=8, seeds="random", seed=3)
    inputs = random_inputs(b=2, t=16)
    _, together = inputs.run(options, "chunked")
    _, alone = Inputs(*(x[:1] for x in (inputs.q, inputs.k, inputs.v)), inputs.beta, inputs.mask[:1]).run(
        options, "chunked"
    )
    assert torch.equal(together.keys[:1], alone.keys)
    other = DictionaryOptions(capacity=8, chunk_size=8, seeds="random", seed=4)
    assert not torch.equal(inputs.run(other, "chunked")[1].keys, together.keys)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_that_sees_nothing_gives_zero(implementation):
    inputs = random_inputs(b=2, t=6, dtype=dtype_of(implementation))
    inputs.mask[0] = False
    o, state = inputs.run(DictionaryOptions(capacity=4, chunk_size=2), implementation)
    assert not o[0].any()
    assert o[1].all()
    assert state.tokens.tolist() == [0, 6]
