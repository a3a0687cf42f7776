"""The fast implementation against the reference: outputs, states, gradients, dtypes, and as an operator of PyTorch."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import (
    Inputs,
    all_inputs,
    all_options,
    assert_states_close,
    empty_state,
    examples,
    random_inputs,
    relative_rms,
)

from kernels import (
    ASSIGNMENT,
    GROWTH,
    LEARNING_RATES,
    READ_OUTS,
    SEEDS,
    DictionaryOptions,
    DictionaryState,
    batch_heads,
    ovq_attention,
    reading,
    reference,
    selection,
    update,
)

COMBINATIONS = list(itertools.product(GROWTH, SEEDS, ASSIGNMENT, LEARNING_RATES))


@pytest.mark.parametrize(("growth", "seeds", "assignment", "learning_rate"), COMBINATIONS)
def test_every_combination_of_options(growth, seeds, assignment, learning_rate):
    options = DictionaryOptions(
        capacity=6,
        chunk_size=5,
        growth=growth,
        growth_rate=0.3,
        concentration=4.0,
        novelty_threshold=0.5,
        seeds=seeds,
        assignment=assignment,
        learning_rate=learning_rate,
        rate=0.1,
        read_out=READ_OUTS[COMBINATIONS.index((growth, seeds, assignment, learning_rate)) % 3],
    )
    inputs = random_inputs(b=2, t=18, masked=0.3)
    inputs.mask[0, 5:10] = False  # a whole chunk
    expected, actual = (inputs.run(options, name) for name in ("reference", "chunked"))
    torch.testing.assert_close(actual[0], expected[0])
    assert_states_close(actual[1], expected[1])


@pytest.mark.parametrize("cut_small", [False, True])
@pytest.mark.parametrize("read_out", READ_OUTS)
@given(inputs=all_inputs(), options=all_options(), before=st.integers(0, 8), shared=st.booleans())
@examples()
def test_outputs_states_and_gradients(read_out, cut_small, inputs, options, before, shared):
    options = replace(options, read_out=read_out)
    with pytest.MonkeyPatch.context() as patch:
        if cut_small:  # so that small inputs too are cut for caches and threads
            patch.setattr(reading, "TILE", 2)
            patch.setattr(selection, "_TILE", 40)
            patch.setattr(batch_heads, "_SCORES", 16)
        assert_same_as_the_reference(inputs, options, before, shared)


def assert_same_as_the_reference(inputs, options, before, shared):
    """From states of one row or many, with and without pending tokens, every gradient that exists."""
    b = inputs.q.shape[0]
    history = random_inputs(1 if shared else b, before, *inputs.k.shape[2:], inputs.v.shape[-1], masked=0.2, seed=7)
    if before:
        with torch.no_grad():
            _, state = history.run(options, "chunked")
    else:
        state = empty_state(inputs, options, 1 if shared else b)
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(*inputs.q.shape[:3], inputs.v.shape[-1], generator=g, dtype=torch.float64)
    results = []
    for name in ("reference", "chunked"):
        leaves = inputs.leaves()
        learned = {
            field: tensor.clone().requires_grad_()
            for field, tensor in state.state_dict().items()
            if tensor.is_floating_point()
        }
        o, final = inputs.with_leaves(leaves).run(options, name, state.replace(**learned))
        loss = (o * weight).sum()
        for tensor in (final.keys, final.values, final.pending_keys, final.pending_values):
            loss = loss + tensor.pow(3).sum()
        wanted = [*leaves, *learned.values()]
        grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
        results.append((o, final, grads))
    (o, final, grads), (fast_o, fast_final, fast_grads) = results
    assert torch.isfinite(o).all()
    torch.testing.assert_close(fast_o, o)
    assert_states_close(fast_final.detach(), final.detach())
    torch.testing.assert_close(fast_grads, grads)


@given(all_inputs(), all_options(), st.booleans())
@examples()
def test_update_agrees_and_leaves_its_input_alone(inputs, options, shared):
    state = empty_state(inputs, options, 1 if shared else None)
    expected_state = state
    k, v = (torch.where(inputs.mask[..., None, None], x, 0.0) for x in (inputs.k, inputs.v))
    for _ in range(2):
        before = state.clone()
        written, slots = update(state, inputs.k, inputs.v, options, inputs.mask)
        assert all(torch.equal(x, y) for x, y in zip(*(s.state_dict().values() for s in (state, before)), strict=True))
        expected_state, expected_slots = reference.update(expected_state, k, v, options, inputs.mask)
        assert torch.equal(slots, expected_slots)
        assert_states_close(written, expected_state)
        state = written


@pytest.mark.parametrize(("group", "biased"), [(1, False), (1, True), (2, True)])
def test_gradcheck(group, biased):
    """Against finite differences, in fp64, where no assignment is near a tie."""
    inputs = random_inputs(t=11, dk=3, dv=2, masked=0.15, group=group, biased=biased)
    inputs = inputs.on_tokens(torch.nan_to_num)
    for read_out in READ_OUTS:
        options = DictionaryOptions(capacity=3, chunk_size=4, read_out=read_out, query_norm=read_out != "unit")

        def run(*leaves, options=options):
            o, final = inputs.with_leaves(leaves).run(options, "chunked")
            return o, final.keys, final.values, final.pending_keys

        assert torch.autograd.gradcheck(run, inputs.leaves(), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize(
    "options", [{}, {"read_out": "gmr", "assignment": "all"}, {"learning_rate": "floored"}], ids=str
)
def test_dtypes(dtype, tolerance, options):
    """Statistics are fp32; outputs and gradients have the dtype of their inputs, and errors of its size."""
    options = DictionaryOptions(capacity=16, chunk_size=16, **options)
    inputs = random_inputs(b=2, t=70, dk=16, dv=16, dtype=dtype)
    weight = torch.randn(inputs.v.shape, generator=torch.Generator().manual_seed(3))
    results = []
    for name, cast in (("reference", torch.float64), ("chunked", dtype)):
        leaves = [x.detach().to(cast).requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
        beta = inputs.beta.detach().to(torch.promote_types(cast, torch.float32)).requires_grad_()
        o, final = Inputs(*leaves, beta, inputs.mask).run(options, name)
        grads = torch.autograd.grad((o * weight).sum(), [*leaves, beta])
        results.append([o, *grads])
    assert final.keys.dtype == final.pending_keys.dtype == torch.float32
    for expected, actual in zip(*results, strict=True):
        assert relative_rms(actual, expected) < tolerance
    assert results[1][0].dtype == results[1][1].dtype == dtype
    assert results[1][4].dtype == torch.float32  # beta's


def test_autocast_does_not_touch_statistics():
    inputs = random_inputs(t=20, dtype=torch.float32)
    options = DictionaryOptions(capacity=4, chunk_size=4)
    expected, _ = inputs.run(options, "chunked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("chunked", "reference"):
            o, final = inputs.run(options, name)
            torch.testing.assert_close(o, expected)
            assert final.keys.dtype == torch.float32


def test_a_large_call_is_the_same_on_threads():
    """Blocks of batch heads on threads of their own give what one thread gives, forward and backward."""
    inputs = random_inputs(b=3, t=300, h=3, dk=8, dv=8, dtype=torch.float32, masked=0.1)
    options = DictionaryOptions(capacity=64, chunk_size=64, seeds="random")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            leaves = inputs.leaves()
            o, final = inputs.with_leaves(leaves).run(options, "chunked")
            results.append([o, *final.state_dict().values(), *torch.autograd.grad(o.sum(), leaves)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert inputs.q.shape[1] * 9 * (64 + 64) >= 1 << 18  # enough for threads
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("group", "biased"), [(1, False), (3, True)])
def test_opcheck(group, biased):
    options = DictionaryOptions(capacity=6, chunk_size=5)
    state = DictionaryState.empty((1, 2, 6, 4, 3))
    for t, closes, differentiate in ((28, 5, True), (4, 0, True), (4, 0, False), (28, 5, False)):
        inputs = random_inputs(b=2, t=t, dtype=torch.float32, group=group, biased=biased)
        tensors = inputs.leaves() if differentiate else [x.detach() for x in inputs.leaves()]
        bias = [] if biased else [None]
        arguments = (*tensors, *bias, inputs.mask, *state.state_dict().values(), options.text, closes, differentiate)
        torch.library.opcheck(torch.ops.ovq.attention.default, arguments)


class Model(torch.nn.Module):
    """The operator between two projections, with the state that it leaves.

    As many heads of keys and of values as `kv_heads`, for 2 of queries; a slot bias if `biased`.
    """

    def __init__(self, options, kv_heads=2, biased=False):
        super().__init__()
        self.options = options
        self.heads = [2, kv_heads, kv_heads]
        self.inner, self.outer = torch.nn.Linear(8, 4 * sum(self.heads)), torch.nn.Linear(8, 8)
        self.beta = torch.nn.Parameter(torch.ones(2))
        self.slot_bias = torch.nn.Parameter(torch.tensor([-0.5, 0.5])) if biased else None

    def forward(self, x, state=None):
        """x `[B, T, 8]`."""
        q, k, v = self.inner(x).unflatten(-1, (-1, 4)).split(self.heads, -2)
        o, state = ovq_attention(
            q,
            k,
            v,
            self.beta,
            self.options,
            initial_state=state,
            slot_bias=self.slot_bias,
            output_final_state=True,
        )
        return self.outer(o.flatten(-2)), state


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kv_heads", "biased"), [(2, False), (1, True)])
def test_compiles_without_a_graph_break(kv_heads, biased, backend):
    torch.manual_seed(0)
    model = Model(DictionaryOptions(capacity=6, chunk_size=5), kv_heads, biased)
    x = torch.randn(2, 13, 8)
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        y, state = run(x)
        z, state = run(x[:, :1], state.detach())
        (y.sum() + z.sum() + state.keys.sum()).backward()
        results.append([y, z, *state.state_dict().values(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 12, 2, 5)}, r"\[B, T, H, Dk\]"),
        ({"beta": torch.ones(3)}, r"beta must have shape \[2\]"),
        ({"mask": torch.ones(1, 11, dtype=torch.bool)}, "mask must be bool"),
        ({"mask": torch.ones(1, 12)}, "mask must be bool"),
        ({"initial_state": DictionaryState.empty((1, 2, 9, 4, 3))}, "capacity 9, the options 4"),
        ({"initial_state": DictionaryState.empty((3, 2, 4, 4, 3))}, "3 rows, the tokens 1"),
        ({"initial_state": DictionaryState.empty((1, 2, 4, 4, 2))}, "value size"),
        ({"initial_state": DictionaryState.empty((1, 2, 4, 4, 3), torch.float64)}, "float64"),
        ({"implementation": "chunky"}, "did you mean 'chunked'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors_say_what_does_not_fit(change, message):
    inputs = random_inputs(dtype=torch.float32)
    arguments = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "beta": inputs.beta} | change
    with pytest.raises(ValueError, match=message):
        ovq_attention(**arguments, options=DictionaryOptions(capacity=4, chunk_size=4))


def test_no_tokens():
    options = DictionaryOptions(capacity=4, chunk_size=4)
    inputs = random_inputs(t=7)
    _, state = inputs.run(options, "chunked")
    o, after = inputs.cut(0, 0).run(options, "chunked", state)
    assert o.shape == (1, 0, 2, 3)
    assert_states_close(after, state, rtol=0, atol=0)


def test_second_derivatives():
    """The reference has them; the fast path says that it does not."""
    inputs = random_inputs(t=9)
    options = DictionaryOptions(capacity=4, chunk_size=4)
    for name in ("reference", "chunked"):
        leaves = inputs.leaves()
        o, _ = inputs.with_leaves(leaves).run(options, name)
        (grad,) = torch.autograd.grad(o.sum(), leaves[1], create_graph=True)
        if name == "reference":
            assert torch.autograd.grad(grad.pow(2).sum(), leaves[1])[0].any()
        else:
            with pytest.raises(NotImplementedError, match="second derivative"):
                grad.pow(2).sum().backward()
